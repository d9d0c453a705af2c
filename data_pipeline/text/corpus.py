"""Texts of the files, folders and patterns that a command is given, read as `raw.paths` are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_pipeline.readers.formats import read_file
from data_pipeline.readers.listing import Skipped, list_inputs
from data_pipeline.readers.record import Found, Unread
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.data.tokenizers import replace_surrogates


class Corpus:
    """Texts on disk, read anew each time that they are gone through.

    Attributes:
      skipped: what could not be read when they were gone through last.
    """

    def __init__(self, paths: Sequence[str], *, text_key: str = "text"):
        self._raw = RawTextConfig(kind="files", paths=tuple(paths), text_key=text_key)
        self.skipped = Skipped()

    def __iter__(self) -> Iterator[str]:
        """Yield each text that is not blank.

        Raises:
          UserError: a path is not there.
        """
        self.skipped = Skipped()
        for file in list_inputs(self._raw, self.skipped):
            try:
                for record in read_file(file.path, file.name, self._raw):
                    if isinstance(record, Unread):
                        self.skipped.add(record.reason, file.name + record.place)
                    elif isinstance(record, Found) and record.text.strip():
                        text = replace_surrogates(record.text)
                        yield text.replace("\r\n", "\n").replace("\r", "\n")
            except OSError:
                self.skipped.add("unreadable file", file.name)
