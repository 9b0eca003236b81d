"""Becomes a Triton on this machine: triton.py REPOSITORY HTTP_PORT GRPC_PORT [OPTION ...].

The server is that of the wheel nvidia-pytriton, which `make servers` puts into .servers/triton. Of
backends it has the one for Python, which ../onnxruntime makes one for ONNX models, run by this
Python with its packages.
"""

import os
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
WHEEL = HERE.parent.parent / ".servers" / "triton"
SHARED = f"shm-default-byte-size={64 * 2**20}"


def main(repository: str, http_port: str, grpc_port: str, *options: str) -> None:
    server = WHEEL / "pytriton" / "tritonserver"
    if not server.exists():
        sys.exit(f"there is no Triton at {WHEEL}; make servers installs it")
    backends = server / "backends"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    for link, target in [
        (backends / "python" / stub.name, stub),
        (backends / "onnxruntime", HERE / "onnxruntime"),
    ]:
        if not link.exists():
            link.unlink(missing_ok=True)  # where the repository has been moved, it leads nowhere
            with suppress(FileExistsError):  # two servers that start at once
                link.symlink_to(target)
    program = server / "bin" / "tritonserver"
    program.chmod(0o755)
    libraries = [str(WHEEL / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    environment = os.environ | {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PYTHONPATH": sysconfig.get_path("purelib"),
    }
    os.execve(
        program,
        [
            "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--http-address=127.0.0.1",
            f"--http-port={http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc_port}",
            "--allow-metrics=false",
            "--exit-timeout-secs=1",
            # A backend ends now and then as its shared memory grows.
            *(f"--backend-config={each},{SHARED}" for each in ("python", "onnxruntime")),
            *options,
        ],
        environment,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
