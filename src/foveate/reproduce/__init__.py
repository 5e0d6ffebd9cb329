"""The paper's tables as commands that run: rows, commands, runner, page. Above the library, which never imports it."""
