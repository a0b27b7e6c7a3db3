"""What the launch scripts would run, from their dry runs."""

import re
import shlex
import subprocess

import pytest
import yaml

from tests.kit.processes import run
from vitar_jax.errors import ConfigError
from vitar_jax.runtime.preemption import exit_status

COMMAND = ["python", "-m", "vitar_jax.train", "--config=configs/my recipe.py", '--workdir=a"b\\c']
SETTINGS = {
    "local.sh": {},
    "slurm.sh": {"NODES": "2", "GPUS": "4", "ACCOUNT": "lab"},
    "tpu_slice.sh": {"TPU": "slice", "ZONE": "here", "PROJECT": "mine"},
    "gke.sh": {"IMAGE": "registry/vitar:1", "TOPOLOGY": "4x4", "ACCELERATOR": "tpu-v6e-slice", "CLAIM": "runs"},
}


def dry_run(script: str, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    count = ["2"] if script == "local.sh" and command else []
    return run("bash", f"launch/{script}", "--dry-run", *count, *command, environ=environ, timeout=60)


@pytest.mark.parametrize("script", SETTINGS)
def test_a_script_without_a_command_says_how_it_is_used(script: str) -> None:
    done = dry_run(script, [], **SETTINGS[script])
    assert done.returncode == 2 and "usage:" in done.stderr


@pytest.mark.parametrize("script", [name for name in SETTINGS if "local" not in name and "slurm" not in name])
def test_a_script_without_its_settings_says_how_it_is_used(script: str) -> None:
    done = dry_run(script, COMMAND)
    assert done.returncode == 2 and "usage:" in done.stderr


def test_local_starts_each_process_with_its_number() -> None:
    lines = dry_run("local.sh", COMMAND, JAX_COORDINATOR_ADDRESS="127.0.0.1:9").stdout.splitlines()
    for number, line in enumerate(lines):
        words = shlex.split(line)
        assert words[:3] == ["JAX_COORDINATOR_ADDRESS=127.0.0.1:9", "JAX_NUM_PROCESSES=2", f"JAX_PROCESS_ID={number}"]
        assert words[3:] == COMMAND
    assert len(lines) == 2


def test_slurm_starts_one_process_a_node_with_all_its_gpus() -> None:
    script = dry_run("slurm.sh", COMMAND, **SETTINGS["slurm.sh"]).stdout
    assert {"nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "account=lab"} <= set(re.findall(r"#SBATCH --(\S+)", script))
    last = shlex.split(script.splitlines()[-1])
    assert last[:2] == ["exec", "srun"] and last[-len(COMMAND) :] == COMMAND
    assert run("bash", "-n", "-c", script).returncode == 0
    devices = next(line for line in script.splitlines() if line.startswith("JAX_LOCAL_DEVICE_IDS="))
    shown = run("bash", "-c", f"{devices}; echo $JAX_LOCAL_DEVICE_IDS")
    assert shown.stdout.strip() == "0,1,2,3"


def test_tpu_slice_copies_the_checkout_to_every_worker_and_runs_there() -> None:
    copy, run = map(shlex.split, dry_run("tpu_slice.sh", COMMAND, **SETTINGS["tpu_slice.sh"]).stdout.splitlines())
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"] and copy[6] == "slice:vitar_jax.tar.gz"
    assert run[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "slice"]
    for words in (copy, run):
        assert {"--zone=here", "--worker=all", "--project=mine"} <= set(words)
    remote = next(word for word in run if word.startswith("--command=")).removeprefix("--command=")
    assert shlex.split(remote)[-len(COMMAND) :] == COMMAND and "VITAR_DISTRIBUTED=1" in remote


def test_gke_asks_for_one_pod_a_host() -> None:
    manifest = yaml.safe_load(dry_run("gke.sh", COMMAND, **SETTINGS["gke.sh"]).stdout)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4  # 4 x 4 chips, 4 a host
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["containers"][0]["command"] == COMMAND
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


def test_gke_mounts_one_directory_in_every_pod() -> None:
    manifest = yaml.safe_load(dry_run("gke.sh", COMMAND, **SETTINGS["gke.sh"]).stdout)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (volume,), (mount,) = pod["volumes"], pod["containers"][0]["volumeMounts"]
    assert volume["persistentVolumeClaim"] == {"claimName": "runs"}
    assert mount == {"name": volume["name"], "mountPath": "/shared"}


def test_gke_restarts_all_pods_after_an_eviction_that_left_a_checkpoint() -> None:
    """A pod with status 0 is completed for Kubernetes, so a run that an eviction stops ends with another status."""
    jobset = yaml.safe_load(dry_run("gke.sh", COMMAND, **SETTINGS["gke.sh"]).stdout)["spec"]
    job = jobset["replicatedJobs"][0]["template"]["spec"]
    (variable,) = job["template"]["spec"]["containers"][0]["env"]
    status = exit_status({variable["name"]: variable["value"]})
    assert status != 0
    by_status, by_condition = job["podFailurePolicy"]["rules"]
    assert by_status == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [status]}}
    assert by_condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    (rule,) = jobset["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy allows no other


@pytest.mark.parametrize("status", ["-1", "256", "no", ""])
def test_a_wrong_status_is_named(status: str) -> None:
    assert exit_status({}) == 0
    with pytest.raises(ConfigError, match="VITAR_STOPPED_STATUS="):
        exit_status({"VITAR_STOPPED_STATUS": status})
