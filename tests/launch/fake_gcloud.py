"""In the place of gcloud: one queued resource, whose hosts are folders.

$FAKE/calls gets a line of JSON for each call. $FAKE/states holds the states of the resource, a line for each look at
it; the last one stays. Without that file there is no resource. The hosts' homes are $FAKE/hosts/worker-0, worker-1...
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def main(fake: Path, group: list[str], verb: str, name: str, arguments: list[str]) -> int:
    """Does what one call of gcloud would do; its exit status."""
    assert group == ["compute", "tpus", "queued-resources"]
    with open(fake / "calls", "a") as file:
        file.write(json.dumps([verb, name, *arguments]) + "\n")
    states = fake / "states"
    if verb == "create":
        shutil.copy(fake / "states_after_create", states)
        return 0
    if not states.exists():
        print("ERROR: NOT_FOUND", file=sys.stderr)
        return 1
    if verb == "delete":
        states.unlink()
    elif verb == "describe":
        first, *rest = states.read_text().splitlines()
        print(first)
        if rest:
            states.write_text("\n".join(rest))
    else:
        first_alone = {"--node=0", "--worker=0"} <= set(arguments)
        assert first_alone or {"--node=all", "--worker=all"} <= set(arguments)
        hosts = sorted((fake / "hosts").iterdir())[: 1 if first_alone else None]
        if verb == "scp":
            for host in hosts:
                shutil.copy(name, host / arguments[0].partition(":")[2])
        else:
            [command] = [argument for argument in arguments if argument.startswith("--command=")]
            shell = ["bash", "-c", command.partition("=")[2]]
            started = [subprocess.Popen(shell, cwd=host, env=os.environ | {"HOME": str(host)}) for host in hosts]
            return max(process.wait() for process in started)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(os.environ["FAKE"]), sys.argv[1:4], sys.argv[4], sys.argv[5], sys.argv[6:]))
