"""What a user can put right. Here, because the command line must know it before it loads anything heavy."""


class UserError(Exception):
    """Something the user can put right; its message is one sentence that says how. The command line prints
    it alone and exits with its status."""

    status = 1
