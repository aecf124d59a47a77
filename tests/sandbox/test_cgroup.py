"""Cgroups of calls, on a tree of plain files: no machine of ours has a delegated one, so the kernel's part is
not tested."""

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
    """A process's view of a cgroup tree, and the directory above its own."""
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


def test_the_directory_above_the_servers_own_is_used(tmp_path):
    """The controllers are turned on in it, and what a server that was killed left is removed, but no other
    worker's."""
    proc, above = tree(tmp_path)
    (above / "qproxy-call-4194305-1").mkdir()  # no process has a number beyond 2**22
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
    """Paths are those below the root of the mount."""
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
def test_where_no_cgroup_can_be_had(given, tmp_path):
    """Calls run without one where the tree is not this server's, or cannot limit memory."""
    proc, above = tree(tmp_path, **given)
    assert cgroup.find_cgroups(proc, shutil.rmtree) is None
    assert (above / "cgroup.subtree_control").read_text() == ""


def test_without_cgroups_of_the_second_version(tmp_path):
    """Older systems, and those without /proc, have none."""
    assert cgroup.find_cgroups(tmp_path) is None
    (tmp_path / "cgroup").write_text("4:memory:/old\n")
    (tmp_path / "mountinfo").write_text("1 2 0:3 / /proc rw - proc proc rw\n")
    assert cgroup.find_cgroups(tmp_path) is None


def test_a_group_has_the_limits_of_a_call(tmp_path):
    """Memory counts with what /tmp holds, nothing is swapped, and at the end all processes are killed."""
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


async def test_each_call_is_in_a_group_before_it_begins(tmp_path):
    """The first process of the sandbox is moved at the gate; the group is gone after the call."""
    found = await bubblewrap.find_bubblewrap()
    if isinstance(found, SandboxUnavailable):
        return
    found.cgroups = CgroupTree(tmp_path, shutil.rmtree)
    async with found(["sleep", "1000"], SandboxPolicy()) as child:
        (group,) = tmp_path.iterdir()
        moved = int((group / "cgroup.procs").read_text())
        os.kill(moved, 0)  # it is there
        child.kill()
    assert list(tmp_path.iterdir()) == []
    async with found(["true"], SandboxPolicy()) as child:
        assert (await communicate(child, b"", limit=100)).code == 0


async def test_a_group_that_cannot_be_made_is_a_refusal(tmp_path):
    """A call does not run without the limits that others had."""
    found = bubblewrap.Bubblewrap("/bin/true", CgroupTree(tmp_path / "gone"))
    with pytest.raises(
        SandboxUnavailable, match=r"no cgroup can be made in .*gone: No such file or directory"
    ):
        async with found(["true"], SandboxPolicy()):
            pass
