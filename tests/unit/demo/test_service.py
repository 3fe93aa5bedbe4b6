"""The configuration that the demo writes for itself."""

from __future__ import annotations

from pathlib import Path

from foreshard.proxy.config import load_config
from foreshard.proxy.demo.service import drop_sections, find_template, write_config


def test_the_written_configuration_is_the_template_with_other_places(tmp_path: Path) -> None:
    template = load_config(find_template())
    written = load_config(write_config(find_template(), tmp_path, "127.0.0.1:7000"))
    assert (written.listen_host, written.listen_port) == ("127.0.0.1", 7000)
    assert written.tables == template.tables
    assert written.triggers == template.triggers
    assert written.placement == template.placement
    assert written.schema == template.schema
    assert written.functions_path == template.functions_path
    assert written.embedded is not None
    assert written.embedded.data == tmp_path / "shards"
    assert written.run_directory == tmp_path / "run"


def test_only_the_named_top_level_sections_are_dropped() -> None:
    text = "# a\nlisten: x\nembedded:\n  shards: 3\n  # inside\n\ntables:\n  listen: y\n"
    assert drop_sections(text, {"listen", "embedded"}) == "# a\ntables:\n  listen: y\n"
