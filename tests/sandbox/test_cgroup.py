"""Cgroups of calls, tested on a tree of plain files: no test machine has a delegated cgroup, so the kernel's
part is untested."""

import os
import shutil

import pytest

from qproxy.sandbox import ResourceLimits, SandboxPolicy, SandboxUnavailable, bubblewrap, cgroup, communicate
from qproxy.sandbox.cgroup import CgroupTree
from qproxy.sandbox.policy import MIB

MOUNT = "42 32 0:26 {root} {mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"


def tree(
    folder, *, own="/system.slice/qproxy.service/server", root="/", controllers="cpu memory pids", procs=""
):
    """Return a process's view of a cgroup tree, and the directory above its own."""
    mount, proc = folder / "cgroup", folder / "proc"
    here = mount / own.removeprefix(root).lstrip("/")
    here.mkdir(parents=True)
    proc.mkdir()
    (proc / "cgroup").write_text(f"4:memory:/old\n0::{own}\n")
    (proc / "mountinfo").write_text(
        "1 2 0:3 / /proc rw - proc proc rw\n" + MOUNT.format(root=root, mount=mount)
    )
    (here.parent / "cgroup.controllers").write_text(controllers)
    (here.parent / "cgroup.subtree_control").write_text("")
    (here.parent / "cgroup.procs").write_text(procs)
    return proc, here.parent


def test_uses_the_parent_of_the_servers_cgroup(tmp_path):
    """Its controllers are enabled; cgroups of a killed server are removed, those of another worker are
    not."""
    proc, above = tree(tmp_path)
    (above / "qproxy-call-4194305-1").mkdir()  # no process has an id beyond 2**22
    (above / f"qproxy-call-{os.getpid()}-9").mkdir()
    found = cgroup.find_cgroups(proc, shutil.rmtree)
    assert found is not None
    assert found.root == above
    assert (above / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert sorted(path.name for path in above.iterdir() if path.is_dir()) == [
        f"qproxy-call-{os.getpid()}-9",
        "server",
    ]


def test_a_container_sees_a_part_of_the_tree(tmp_path):
    """Paths are relative to the root of the mount."""
    proc, above = tree(tmp_path, own="/docker/1/app/server", root="/docker/1")
    found = cgroup.find_cgroups(proc, shutil.rmtree)
    assert found is not None
    assert found.root == above == tmp_path / "cgroup" / "app"


UNUSABLE = {
    "the root": {"own": "/"},
    "the root of a container": {"own": "/docker/1", "root": "/docker/1"},
    "outside of the mount": {"own": "/../other/server", "root": "/docker/1"},
    "no memory controller": {"controllers": "cpu pids"},
    "processes beside it": {"procs": "77\n"},
}


@pytest.mark.parametrize("given", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_runs_without_an_unusable_cgroup(given, tmp_path):
    """Calls run without a cgroup if the tree is not this server's, or cannot limit memory."""
    proc, above = tree(tmp_path, **given)
    assert cgroup.find_cgroups(proc, shutil.rmtree) is None
    assert (above / "cgroup.subtree_control").read_text() == ""


def test_runs_without_cgroups_v2(tmp_path):
    """Older systems, and those without /proc, have no cgroup."""
    assert cgroup.find_cgroups(tmp_path) is None
    (tmp_path / "cgroup").write_text("4:memory:/old\n")
    (tmp_path / "mountinfo").write_text("1 2 0:3 / /proc rw - proc proc rw\n")
    assert cgroup.find_cgroups(tmp_path) is None


def test_a_cgroup_has_the_limits_of_a_call(tmp_path):
    """The memory limit includes /tmp, swap is off, and at the end all processes are killed."""
    seen = {}

    def remove(path):
        seen.update({file.name: file.read_text() for file in path.iterdir()})
        shutil.rmtree(path)

    limits = ResourceLimits(memory=100 * MIB, tmp_bytes=20 * MIB, processes=7)
    with CgroupTree(tmp_path, remove).create(limits) as join:
        join(1234)
    assert seen == {
        "memory.max": str(120 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "7",
        "cgroup.procs": "1234",
        "cgroup.kill": "1",
    }
    assert list(tmp_path.iterdir()) == []


async def test_a_call_joins_its_cgroup_before_it_starts(tmp_path):
    """The first process of the sandbox is moved before it starts; the cgroup is removed after the call."""
    found = await bubblewrap.find_bubblewrap()
    if isinstance(found, SandboxUnavailable):
        return
    found.cgroups = CgroupTree(tmp_path, shutil.rmtree)
    async with found(["sleep", "1000"], SandboxPolicy()) as child:
        (group,) = tmp_path.iterdir()
        process_id = int((group / "cgroup.procs").read_text())
        os.kill(process_id, 0)  # the process exists
        child.kill()
    assert list(tmp_path.iterdir()) == []
    async with found(["true"], SandboxPolicy()) as child:
        assert (await communicate(child, b"", limit=100)).code == 0


async def test_a_cgroup_that_cannot_be_created_fails_the_call(tmp_path):
    """A call does not run without the limits of other calls."""
    found = bubblewrap.Bubblewrap("/bin/true", CgroupTree(tmp_path / "gone"))
    with pytest.raises(
        SandboxUnavailable, match=r"no cgroup can be made in .*gone: No such file or directory"
    ):
        async with found(["true"], SandboxPolicy()):
            pass
