/* A model server that costs next to nothing: answers are made once, and sent as the model's name asks.
 *
 *   whole-N      one JSON answer with N bytes of text        (also when a stream was asked for)
 *   burst-N      a stream of N chunks, sent at once
 *   tools-N      a stream of one tool call with N argument fragments, sent at once
 *   paced-N-MS   a stream of N chunks, one every MS milliseconds
 *   held-N       a stream that says N chunks and then nothing more
 *
 * One thread, epoll, 127.0.0.1 only.  usage: upstream PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 65536, INPUT = 8 << 20 };

struct connection {
    char *in; size_t in_length, in_room;
    char *out; size_t out_length, out_sent; int out_owned;
    long paced_left, paced_every; double paced_at;
    int open;
};
static struct connection connections[CONNECTIONS];
static int paced[CONNECTIONS], paced_count;

static double now(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
static const char HEAD[] = "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":";
static const char TAIL[] = ",\"finish_reason\":null}],\"usage\":null}\n\n";

static size_t chunk(char *to, const char *delta) {
    char event[1024];
    int n = snprintf(event, sizeof event, "%s%s%s", HEAD, delta, TAIL);
    return sprintf(to, "%x\r\n%s\r\n", n, event);
}

static size_t ending(char *to, const char *reason) {
    char event[1024]; size_t size;
    int n = snprintf(event, sizeof event, "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"bench\","
        "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":\"%s\"}],\"usage\":null}\n\n", reason);
    size = sprintf(to, "%x\r\n%s\r\n", n, event);
    n = snprintf(event, sizeof event, "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"bench\","
        "\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":100,\"total_tokens\":120}}\n\ndata: [DONE]\n\n");
    size += sprintf(to + size, "%x\r\n%s\r\n0\r\n\r\n", n, event);
    return size;
}

static void send_some(int fd, int poll) {
    struct connection *c = &connections[fd];
    while (c->out_sent < c->out_length) {
        ssize_t n = send(fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
        if (n <= 0) break;
        c->out_sent += n;
    }
    int waits = c->out_sent < c->out_length;
    struct epoll_event e = { .events = EPOLLIN | (waits ? EPOLLOUT : 0), .data.fd = fd };
    epoll_ctl(poll, EPOLL_CTL_MOD, fd, &e);
    if (!waits && c->out_owned) { free(c->out); c->out = NULL; c->out_owned = 0; c->out_length = c->out_sent = 0; }
}

static void give(int fd, int poll, char *data, size_t size) {
    struct connection *c = &connections[fd];
    if (c->out) { /* something waits still: add to it */
        c->out = realloc(c->out, c->out_length + size);
        memcpy(c->out + c->out_length, data, size); c->out_length += size; free(data);
    } else { c->out = data; c->out_length = size; c->out_sent = 0; c->out_owned = 1; }
    send_some(fd, poll);
}

static void answer(int fd, int poll, const char *request) {
    struct connection *c = &connections[fd];
    const char *model = strstr(request, "\"model\"");
    long n = 0, every = 0; char kind[16] = "whole";
    if (model) { model = strchr(model + 7, '"'); if (model) sscanf(model + 1, "%15[a-z]-%ld-%ld", kind, &n, &every); }
    size_t room = sizeof STREAM_HEAD + (n + 8) * 400 + 4096, size = 0;
    char *data = malloc(room), *text = NULL;
    if (!strcmp(kind, "whole")) {
        text = malloc(n + 1); memset(text, 'x', n); text[n] = 0;
        char *body = malloc(n + 1024);
        int length = sprintf(body, "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"bench\",\"choices\":[{\"index\":0,"
            "\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":100,\"total_tokens\":120}}", text);
        size = sprintf(data, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n", length);
        data = realloc(data, size + length); memcpy(data + size, body, length); size += length; free(body); free(text);
        give(fd, poll, data, size); return;
    }
    size = sprintf(data, "%s", STREAM_HEAD);
    size += chunk(data + size, "{\"role\":\"assistant\",\"content\":\"\"}");
    if (!strcmp(kind, "paced") || !strcmp(kind, "held")) {
        if (!strcmp(kind, "held")) { for (long i = 0; i < n; i++) size += chunk(data + size, "{\"content\":\"twenty characters of\"}"); give(fd, poll, data, size); return; }
        give(fd, poll, data, size);
        c->paced_left = n; c->paced_every = every ? every : 10; c->paced_at = now() + (fd * 7919 % 100) * c->paced_every / 100.0; paced[paced_count++] = fd; return;
    }
    if (!strcmp(kind, "tools")) {
        size += chunk(data + size, "{\"content\":\"\",\"tool_calls\":[{\"index\":0,\"id\":\"call_bench\",\"type\":\"function\",\"function\":{\"name\":\"write_file\",\"arguments\":\"{\\\"text\\\": \\\"\"}}]}");
        for (long i = 0; i < n; i++) size += chunk(data + size, "{\"content\":\"\",\"tool_calls\":[{\"index\":0,\"id\":\"\",\"type\":\"function\",\"function\":{\"arguments\":\"twenty characters of\"}}]}");
        size += chunk(data + size, "{\"content\":\"\",\"tool_calls\":[{\"index\":0,\"id\":\"\",\"type\":\"function\",\"function\":{\"arguments\":\"\\\"}\"}}]}");
        size += ending(data + size, "tool_calls");
    } else {
        for (long i = 0; i < n; i++) size += chunk(data + size, "{\"content\":\"twenty characters of\"}");
        size += ending(data + size, "stop");
    }
    give(fd, poll, data, size);
}

static void pace(int poll) {
    double t = now();
    for (int i = 0; i < paced_count; i++) {
        int fd = paced[i]; struct connection *c = &connections[fd];
        if (c->open && c->paced_at > t) continue;
        if (c->open) {
            char *data = malloc(4096); size_t size;
            if (c->paced_left-- > 0) { size = chunk(data, "{\"content\":\"twenty characters of\"}"); c->paced_at += c->paced_every; }
            else { size = ending(data, "stop"); c->paced_every = 0; }
            int over = c->paced_every == 0;
            give(fd, poll, data, size);
            if (!over) continue;
        }
        paced[i--] = paced[--paced_count];
    }
}

static void drop(int fd) {
    struct connection *c = &connections[fd];
    free(c->in); if (c->out_owned) free(c->out);
    memset(c, 0, sizeof *c); close(fd);
}

static void receive(int fd, int poll) {
    struct connection *c = &connections[fd];
    for (;;) {
        if (c->in_length + 65536 > c->in_room) { c->in_room = c->in_room * 2 + 131072; if (c->in_room > INPUT) { drop(fd); return; } c->in = realloc(c->in, c->in_room); }
        ssize_t n = recv(fd, c->in + c->in_length, 65536 - 1, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) { drop(fd); return; }
        if (n < 0) break;
        c->in_length += n; c->in[c->in_length] = 0;
    }
    for (;;) {
        if (!c->in_length) return;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return;
        char *field = strcasestr(c->in, "\r\ncontent-length:");
        size_t body = field && field < end ? strtoul(field + 17, NULL, 10) : 0, total = end + 4 - c->in + body;
        if (c->in_length < total) return;
        char kept = c->in[total]; c->in[total] = 0; answer(fd, poll, end + 4); c->in[total] = kept;
        memmove(c->in, c->in + total, c->in_length - total); c->in_length -= total; c->in[c->in_length] = 0;
    }
}

int main(int argc, char **argv) {
    struct rlimit files; getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max < CONNECTIONS ? files.rlim_max : CONNECTIONS; setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, poll = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 9700), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) { perror("upstream"); return 1; }
    struct epoll_event event = { .events = EPOLLIN, .data.fd = listener }, events[512];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(poll, events, 512, paced_count ? 1 : -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(fd, poll);
                if (connections[fd].open && (events[i].events & EPOLLOUT)) send_some(fd, poll);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= CONNECTIONS) { close(fd); continue; }
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                memset(&connections[fd], 0, sizeof connections[fd]); connections[fd].open = 1;
                event.events = EPOLLIN; event.data.fd = fd; epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
            }
        }
        if (paced_count) pace(poll);
    }
}
