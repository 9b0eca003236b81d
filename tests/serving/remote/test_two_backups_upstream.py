"""Two backups in a bundle, over servers that run one of them each."""

from pathlib import Path

import numpy as np
import pytest

from fake_upstream import HUNG, FakeUpstream
from fleet_servers import Parm
from parity_models.errors import UserError
from parity_models.models.bundle import NewModel, open_bundle, with_calibration, write_bundle
from parity_models.models.gate import EVERYTHING, Calibration, GateLevel
from parity_models.options import Value
from parity_models.scheduling import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.deployment import Deployment
from parity_models.serving.options import EngineChoice
from parity_models.serving.remote.upstream import parse_upstreams
from parity_models.serving.server import ServeOptions, Server
from served import WEIGHTS, predictions, queries, write_linear_bundle


def gate(threshold: float) -> Calibration:
    """Of outputs with this confidence; it expects to let through four of five."""
    level = GateLevel(0.9, threshold, 0.8, 0.9)
    return Calibration("classes", 0.0, "scores", 1000, 0.05, (level,))


def _named(bundle: Path, name: str) -> Parm:
    return Parm(bundle, "--name", name)


@pytest.mark.slow
async def test_what_one_backup_may_not_answer_the_server_of_a_better_one_does(
    tmp_path: Path,
) -> None:
    written = open_bundle(write_linear_bundle(tmp_path, coded=False, backed=2))
    bundle = with_calibration(written, {"backup": gate(1e9), "backup-2": gate(EVERYTHING)})
    alone = [
        write_bundle(
            tmp_path / f"{number}-alone",
            deployed=NewModel(written.path / file.file, "alone"),
            parity=[],
            code=None,
        ).path
        for number, file in enumerate(bundle.manifest.backups)
    ]
    names = ("model-backup", "model-backup-2")
    with _named(alone[0], names[0]) as fast, _named(alone[1], names[1]) as better:
        async with FakeUpstream("http", WEIGHTS) as model:
            upstreams: dict[str, Value] = {
                "deployed": f"{model.url}?concurrency=4",
                "backup": f"{fast.url}/{names[0]}?concurrency=4,"
                f"{better.grpc_url}/{names[1]}?concurrency=4",
            }
            options = ServeOptions(
                policy=PolicyChoice("adaptive"),
                deadline=4.0,
                port=0,
                engine=EngineChoice("remote", upstreams),
            )
            async with Server(bundle, options) as server:
                model.mode = HUNG
                rows = queries(1)
                answers = await server.deployment.frontend.infer(rows)
                assert answers.sources == [Source.BACKUP_2]
                np.testing.assert_allclose(answers.outputs, 3 * predictions(rows), rtol=1e-3)
                for kind, fate in (("backup", "refused"), ("backup-2", "answered")):
                    of = {"kind": kind, "fate": fate}
                    count = server.deployment.metrics.registry.get_sample_value(
                        "parm_redundant_tasks_total", of
                    )
                    assert count == 1


def test_a_server_of_one_model_among_several_names_it() -> None:
    (_, one, all_of_them) = parse_upstreams(
        "m", 0, 2, deployed=["http://a"], backup=["http://b/m-backup-2", "http://c"]
    )
    assert one.models == {"backup-2": "m-backup-2"}
    assert all_of_them.models == {"backup": "m-backup", "backup-2": "m-backup-2"}
    (both,) = parse_upstreams(
        "m", 2, deployed=["http://a"], parity=["http://a/m-parity-1", "http://a/m-parity-0"]
    )
    assert both.models == {"deployed": "m", "parity-1": "m-parity-1", "parity-0": "m-parity-0"}
    with pytest.raises(UserError, match=r"'http://b/x' names a model, .* m-backup, m-backup-2; "):
        parse_upstreams("m", 0, 2, deployed=["http://a"], backup=["http://b/x"])
    with pytest.raises(UserError, match="no server of parity runs m-parity-0, and a code needs"):
        parse_upstreams("m", 2, deployed=["http://a"], parity=["http://b/m-parity-1"])
    with pytest.raises(UserError, match="http://b is given twice"):
        parse_upstreams("m", 0, 2, deployed=["http://a"], backup=["http://b", "http://b/m-backup"])


def test_the_first_backup_is_what_approximate_backup_needs(tmp_path: Path) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path, coded=False, backed=2))
    upstreams = {"deployed": "http://a", "backup": "http://b/model-backup-2"}
    engine = EngineChoice("remote", upstreams)
    assert Deployment(bundle, ServeOptions(port=0, engine=engine)).roles[1] == {"backup-2"}
    policy = PolicyChoice("approximate-backup")
    with pytest.raises(UserError, match="approximate-backup needs instances that run backup, and"):
        Deployment(bundle, ServeOptions(port=0, engine=engine, policy=policy))
