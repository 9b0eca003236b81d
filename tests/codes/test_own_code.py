"""A user's own encoder and decoder, and their options, work wherever built-in ones do.

But for one thing: what a bundle names is imported only if the user names it as well.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused, succeeded
from own_coders import DECODER, ENCODER
from parity_models.bundle.bundle import open_bundle
from parity_models.codes import Code, CodeSpec
from parity_models.errors import BundleError, CodeError
from served import INPUTS, write_linear_bundle

OWN = CodeSpec(ENCODER, DECODER, 2, 1, {"gain": 2.0}, {"divisor": 2.0})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("own"), code=OWN)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (CodeSpec(ENCODER, DECODER, 2, 1, {"gain": 0.0}), "gain must be a number, above 0 and"),
        (CodeSpec(ENCODER, DECODER, 2, 1, {"gian": 1}), "gian is not .* did you mean gain"),
        (CodeSpec("sum", DECODER, 2, 1, {}, {"gain": 1}), "the decoder .* it has divisor"),
        (CodeSpec(DECODER, DECODER, 2), "cannot be the encoder: it must be a subclass of"),
        (CodeSpec(ENCODER, "separate", 2), "could not tell the slots apart"),
        (CodeSpec("parity_models.codes:Encoder", DECODER, 2), "cannot be built: .*abstract"),
        (CodeSpec("own_coders:Missing", DECODER, 2), "has no 'Missing'"),
        (CodeSpec("own_coders:Amplifed", DECODER, 2), "did you mean Amplified?"),
    ],
)
def test_it_is_checked_as_it_says(spec: CodeSpec, reason: str) -> None:
    with pytest.raises(CodeError, match=reason):
        Code(spec, (4,), (3,))


def test_a_bundle_s_classes_are_imported_only_if_allowed(bundle: Path) -> None:
    with pytest.raises(
        BundleError, match=rf"if you trust it, allow it with allow_code=\['{DECODER}'\]"
    ):
        open_bundle(bundle, [ENCODER])
    opened = open_bundle(bundle, [ENCODER, DECODER])
    code = opened.code()
    assert code is not None
    assert code.spec == OWN


def test_opening_a_bundle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "innocent.py").write_text("from own_coders import Amplified as Coder")
    path = write_linear_bundle(tmp_path, code=CodeSpec("innocent:Coder", "subtraction", 2))
    del sys.modules["innocent"]
    (tmp_path / "innocent.py").write_text(f"open({str(tmp_path / 'evil')!r}, 'w').close()")
    with pytest.raises(BundleError, match="classes that a bundle names are not imported"):
        open_bundle(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.slow
def test_its_parity_model_is_trained_and_measured(parm_here: Here, tmp_path: Path) -> None:
    out, bare = tmp_path / "coded", write_linear_bundle(tmp_path, coded=False)
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).normal(size=(60, INPUTS)).astype("f"))
    command = ("parity", "--model", bare, "--inputs", tmp_path / "inputs.npy", "--out", out)
    coders = ("--encoder", f"{ENCODER}@gain=2", f"--decoder={DECODER}@divisor=3", "--metric", "r2")
    more = ("--network", "linear", "--epochs", 1)
    succeeded(parm_here(*command, *coders, *more))
    allowed = ("--allow-code", ENCODER, "--allow-code", DECODER)
    assert_refused(
        parm_here("evaluate", out, "--inputs", tmp_path / "inputs.npy"),
        "allow it with --allow-code",
    )
    numbers = tmp_path / "numbers.json"
    succeeded(
        parm_here("evaluate", out, "--inputs", tmp_path / "inputs.npy", "--json", numbers, *allowed)
    )
    code = json.loads(numbers.read_text())["code"]
    assert (code["encoder_options"], code["decoder_options"]) == ({"gain": 2.0}, {"divisor": 3.0})
