"""What is raised for settings that cannot be meant."""


class ConfigError(ValueError):
    """A setting that cannot be meant; the message is one line and says what was wanted."""
