"""Decisions: typed questions about an input, answered with probabilities.

question    the questions and answers, independent of any API
openai      OpenAI's `POST /v1/decisions`
system_one  Model Studio's `POST /v1/systemone`, of clients and of its decision model
chat        the same questions to any chat model, read from its log probabilities
"""

from qproxy.wire.decisions.question import Answer, DecisionInput, Option, Question

__all__ = ["Answer", "DecisionInput", "Option", "Question"]
