"""A method of tables: what was cut is put back."""

from jpeglm.tables.methods.base import Completed, Method


class Originals(Method):
    name, title, colours, marker = "originals", "the originals", ("#123456", "#abcdef"), "."

    def fits(self, codec):
        return True

    def complete(self, context, originals, ratio, grammar):
        return Completed(list(originals))

    def identity(self, context, grammar):
        return {}

    def note(self, context, config):
        return f"“{self.title}” are the {context.codec.item}s themselves."
