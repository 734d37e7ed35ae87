"""The one exception that means: the user can put this right."""


class UserError(Exception):
    """Bad input, found before anything is trained. Its text is one or two lines that name the file, the key and the
    way out; the command line prints it without a traceback and ends with exit status 2."""
