"""Children see an allow-list of our environment."""

from supervisor.config.child_environment import choose, secrets

OURS = {
    "PATH": "/bin", "LC_ALL": "C", "WANDB_API_KEY": "w-123456", "HF_HOME": "/hf", "https_proxy": "http://p", "AWS_SECRET": "s", "PYTHONPATH": "/evil",
    "TRAINSHED_FD": "3", "CUDA_VISIBLE_DEVICES": "0", "MY_FLAG": "1",
}  # fmt: skip


def test_defaults_patterns_and_overrides() -> None:
    chosen = choose("trainer", OURS, ["MY_*"], {"MY_FLAG": "2", "NEW": "3"})
    assert chosen.kept == {
        "PATH": "/bin", "LC_ALL": "C", "WANDB_API_KEY": "w-123456", "HF_HOME": "/hf", "https_proxy": "http://p", "MY_FLAG": "2", "NEW": "3",
    }  # fmt: skip
    assert chosen.dropped == ("AWS_SECRET", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "TRAINSHED_FD")


def test_a_gateway_gets_almost_nothing_and_our_own_names_never_pass() -> None:
    assert set(choose("gateway", OURS).kept) == {"PATH", "LC_ALL"}
    assert not {"TRAINSHED_FD", "PYTHONPATH", "CUDA_VISIBLE_DEVICES"} & set(choose("engine", OURS, ["*"]).kept)


def test_secrets_are_known_by_their_names() -> None:
    assert set(secrets(OURS)) == {"w-123456", "s"}
