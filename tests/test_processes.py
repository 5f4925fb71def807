"""The processes of a run are read from the environment of torchrun, srun and submitit."""

import pytest

from clap.processes import Processes, check_batch_size, first_host, read_processes

TORCHRUN = {
    **{"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"},
    **{"MASTER_ADDR": "gpu1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"},
}
SLURM = {
    **{"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"},
    **{"SLURM_STEP_NODELIST": "gpu[003-004]", "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "16"},
}
SUBMITIT = {
    **{"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2"},
    "SUBMITIT_LOCAL_JOB_ID": "300",
}


def test_processes_of_torchrun():
    found = read_processes(TORCHRUN | SLURM)
    assert found == Processes(9, 1, 16, 8, launcher="torchrun", address="gpu1", port=29500)
    assert found.command() == ["torchrun", "--nnodes=2", "--nproc-per-node=8"]


def test_processes_of_srun_meet_on_the_first_machine():
    found = read_processes(SLURM)
    assert found == Processes(9, 1, 16, 8, launcher="srun", address="gpu003", port=20071)
    assert found.command() == ["srun", "--ntasks=16", "python"]
    assert read_processes(SLURM | {"SUBMITIT_EXECUTOR": "slurm"}).launcher == "submitit"


def test_processes_of_submitit_on_one_machine():
    assert read_processes(SUBMITIT) == Processes(1, 1, 2, 2, launcher="submitit", port=20300)


def test_batch_script_of_slurm_is_one_process():
    script = {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "71"}
    assert read_processes(script) == Processes()
    assert read_processes({}).command() == ["python"]


@pytest.mark.parametrize("nodes, first", [("a1,b2", "a1"), ("n[07,09]-ib,b1", "n07-ib"), ("n[1-4]", "n1")])
def test_first_machine_of_a_list(nodes: str, first: str):
    assert first_host(nodes) == first


def test_batch_that_the_processes_do_not_divide_is_refused():
    check_batch_size(32, 4)
    with pytest.raises(ValueError, match=r"dataset.batch_size=30 .* all 4 processes .* set it to 28 or 32"):
        check_batch_size(30, 4)
    with pytest.raises(ValueError, match="set it to 4$"):
        check_batch_size(3, 4)
