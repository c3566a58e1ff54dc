"""The one SQLite file behind the embedded broker and results store; `memory://` is the same.

Nothing here knows of messages or results. Imported by the drivers only, so that `import taskq`
loads no sqlite3.
"""
