"""What can be set, read once when the server starts: flags override environment variables, which override the file, which overrides the defaults.

In the environment a setting is `CELLSTATE_` and its name (`CELLSTATE_PORT`), for one of a group with two underscores between
(`CELLSTATE_ENGINE__MAX_BATCH_ROWS`); an empty variable counts as unset and `none` as no value. In the file (YAML) groups are mappings. Relative paths are
relative to the working directory.

An unknown key and an unreadable value are errors that name the key and where it was given. `sources.py` beside this file does the reading.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cellstate_service.sources import SettingsError, Sources, read_sources, validate

__all__ = [
    "EngineSettings",
    "KeepaliveSettings",
    "LimitsSettings",
    "LoggingSettings",
    "SessionSettings",
    "Settings",
    "SettingsError",
    "StoreSettings",
    "TLSSettings",
    "load_settings",
]

ENV_PREFIX = "CELLSTATE_"
LOOPBACK = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 (taken only where both TLS and tokens are set, or where asked for)

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Group(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TLSSettings(Group):
    """Encryption of the gRPC port. Without a certificate it is plaintext."""

    certificate: Path | None = Field(default=None, description="PEM file with the server's certificate and those between it and the root.")
    key: Path | None = Field(default=None, description="PEM file with the certificate's private key, unencrypted.")
    client_ca: Path | None = Field(default=None, description="PEM file of authorities; where set, callers must present a certificate signed by one of them.")

    @model_validator(mode="after")
    def _whole(self) -> "TLSSettings":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: set both or none")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        return self


class EngineSettings(Group):
    """How each model's engine computes."""

    max_batch_rows: int = Field(default=256, ge=1, le=8192, description="Sessions advanced together by one step at most.")
    torch_threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Threads of one torch operation. Part of the numerics id: values of servers that differ here may differ in their last bits.",
    )
    threads: Annotated[int, Field(ge=1, le=32)] | None = Field(
        default=None,
        description="Threads that the engines of all models divide the rows of large batches among; of its share each takes as many as make a power of two. "
        "Values do not depend on it. "
        "None: half of the processors, but both of two.",
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="What every model's matrix products are computed in. None: what its manifest says. Part of the numerics id."
    )
    warm_rows: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Batches of 1 to this many rows are computed once before health says SERVING: the first use of a size takes longer. None: max_batch_rows.",
    )
    max_ahead_s: float = Field(
        default=0.04,
        ge=0,
        le=10,
        description="Where many sessions generate, their outputs are held back for this long at most, to be sent several in a message, in seconds. 0: never.",
    )
    retire_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=3600.0,
        description="For so long sessions stay on a version of their model that was replaced (by SIGHUP, which has the models' folder read again), in seconds.",
    )
    max_calls: Count = Field(default=1024, description="Inference calls at once, with and without a session, over all models; those without take a state slot.")
    output_window_steps: Count = Field(default=256, description="Steps generated ahead of a reader that is slow.")


class SessionSettings(Group):
    """How many sessions there are and how long they live."""

    max_sessions: Count = Field(
        default=4096,
        description="Resident sessions on one model. Beyond, those that were not used for the longest time go to the store, and return when called.",
    )
    max_sessions_per_owner: Count | None = Field(default=None, description="Sessions of one owner over all models, resident and stored. None: no limit.")
    idle_ttl_s: Seconds = Field(default=3600.0, description="How long an unused session lives where its caller says nothing, in seconds.")
    max_ttl_s: Seconds = Field(default=7 * 86400.0, description="The longest time to live that a caller may ask for, in seconds.")
    tombstones: Annotated[int, Field(ge=0)] = Field(default=10_000, description="Ended sessions whose reason is remembered for their owner.")

    @model_validator(mode="after")
    def _ordered(self) -> "SessionSettings":
        if self.idle_ttl_s > self.max_ttl_s:
            raise ValueError(f"idle_ttl_s ({self.idle_ttl_s:g}) is above max_ttl_s ({self.max_ttl_s:g})")
        return self


class StoreSettings(Group):
    """Where sessions are kept, so that they outlive the server."""

    kind: Literal["sqlite", "redis", "memory"] = Field(
        default="sqlite",
        description="sqlite: a file, for one server. redis: a Redis 7 server, for any number of servers that share their sessions. "
        "memory: nothing outlives the server.",
    )
    path: Path = Field(default=Path("cellstate-sessions.db"), description="The file of sqlite, which belongs to one server; made where it is missing.")
    url: SecretStr | None = Field(
        default=None, description="Address of the Redis server: redis://[[user]:password@]host[:port][/database], rediss:// with TLS."
    )
    durability: Literal["memory", "periodic", "sync"] | None = Field(
        default=None, description="Of sessions whose caller asks for none. None: periodic; memory where the kind is memory."
    )
    checkpoint_s: Seconds = Field(default=1.0, description="Time between two snapshots of a session of periodic durability that moves, in seconds.")
    lease_s: Annotated[float, Field(ge=0.1, le=600)] = Field(
        default=5.0, description="After this long without a sign of life other servers take the sessions of this one, in seconds."
    )
    timeout_s: Seconds = Field(default=2.0, description="Time for an answer of the Redis server, in seconds.")

    @model_validator(mode="after")
    def _whole(self) -> "StoreSettings":
        if self.kind == "redis" and self.url is None:
            raise ValueError("kind redis needs a url, for example redis://127.0.0.1:6379/0")
        if self.kind == "memory" and self.durability not in (None, "memory"):
            raise ValueError(f"durability {self.durability} needs a store: set kind to sqlite or redis")
        return self

    @property
    def default_durability(self) -> str:
        """Durability of sessions whose caller asks for none."""
        return self.durability or ("memory" if self.kind == "memory" else "periodic")


class LimitsSettings(Group):
    """What one call may ask for."""

    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=2**31 - 1, description="Size of a message that is received, in bytes.")
    max_input_steps: Count = Field(default=100_000, description="Steps of input in one message.")
    max_programs: Count = Field(default=1024, description="Programs in one Run call.")
    max_channels: Count = Field(default=1024, description="Channels of one ManyToMany stream; each counts as a call in engine.max_calls too.")
    max_concurrent_streams: Count = Field(default=1024, description="Calls at once on one connection.")
    max_wait_s: Seconds = Field(
        default=0.1,
        description="New calls are refused, to be tried again later, while steps wait longer than this for their turn or for the event loop, in seconds.",
    )
    queued_steps: Count = Field(
        default=65_536,
        description="Steps of input that one stream may have waiting; beyond, it is not read until they are consumed. One of many channels fails instead.",
    )


class KeepaliveSettings(Group):
    """How dead connections are found."""

    time_s: Seconds = Field(default=60.0, description="Idle time after which the server pings a connection, in seconds.")
    timeout_s: Seconds = Field(default=20.0, description="Time for the answer before the connection is closed, in seconds.")
    min_client_ping_s: Seconds = Field(default=10.0, description="The shortest time between two pings of a client that is tolerated, in seconds.")


class LoggingSettings(Group):
    """What is logged, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least level that is written.")
    format: Literal["auto", "json", "console"] = Field(default="auto", description="JSON lines, lines for people, or by whether standard error is a terminal.")


class Settings(BaseSettings):
    """All settings of a server. Frozen; `load_settings` makes one from its sources, the constructor takes values and nothing else."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True, env_parse_none_str="none"
    )

    host: str | None = Field(
        default=None, min_length=1, description="Address of the gRPC port. None: loopback, unless both TLS and a tokens file are set; then every address."
    )
    port: Port = Field(default=50051, description="The gRPC port; 0 takes a free one.")
    metrics_host: str | None = Field(default=None, min_length=1, description="Address of the metrics port. None: loopback.")
    metrics_port: Port | None = Field(default=9464, description="The HTTP port that Prometheus scrapes; 0 takes a free one, None offers no metrics.")
    models: Path = Field(default=Path("models"), description="Folder whose sub-folders are models.")
    tokens_file: Path | None = Field(
        default=None, description="File of hashed bearer tokens that name the owners. None: every caller is the owner `anonymous`."
    )
    grace_s: float = Field(
        default=20.0, ge=0, allow_inf_nan=False, description="Time for running calls to finish when the server is asked to stop, in seconds."
    )
    tls: TLSSettings = Field(default_factory=TLSSettings, description="Encryption of the gRPC port.")
    engine: EngineSettings = Field(default_factory=EngineSettings, description="How each model's engine computes.")
    sessions: SessionSettings = Field(default_factory=SessionSettings, description="How many sessions there are and how long they live.")
    store: StoreSettings = Field(default_factory=StoreSettings, description="Where sessions are kept.")
    limits: LimitsSettings = Field(default_factory=LimitsSettings, description="What one call may ask for.")
    keepalive: KeepaliveSettings = Field(default_factory=KeepaliveSettings, description="How dead connections are found.")
    logging: LoggingSettings = Field(default_factory=LoggingSettings, description="What is logged.")

    @property
    def listen_host(self) -> str:
        """Address of the gRPC port."""
        if self.host is not None:
            return self.host
        return ANY_ADDRESS if self.tls.certificate is not None and self.tokens_file is not None else LOOPBACK

    @property
    def metrics_listen_host(self) -> str:
        """Address of the metrics port. It has neither encryption nor tokens, so it leaves loopback only where asked to."""
        return self.metrics_host or LOOPBACK

    @property
    def log_json(self) -> bool | None:
        """`configure_logging`'s choice between JSON lines (True), lines for people (False) and finding out (None)."""
        return None if self.logging.format == "auto" else self.logging.format == "json"

    def cautions(self) -> list[str]:
        """Say what is allowed and yet worth a warning in the log."""
        if _is_loopback(self.listen_host):
            return []
        found = []
        if self.tls.certificate is None:
            found.append(f"listening on {self.listen_host} without TLS: values{' and tokens' if self.tokens_file else ''} travel in clear text")
        if self.tokens_file is None:
            found.append(f"listening on {self.listen_host} without a tokens file: whoever reaches the port is the same owner")
        return found

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the constructor read no environment: `load_settings` does, at the edge."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def load_settings(config: Path | None = None, overrides: dict[str, object] | None = None) -> Settings:
    """Read the settings from flags, environment, file and defaults.

    Args:
        config: YAML file. None: the one that CELLSTATE_CONFIG names, or none.
        overrides: Values of flags, as nested mappings. They win over everything.

    Returns:
        The settings; the folder of models exists.

    Raises:
        SettingsError: A key is unknown, a value unreadable, a file missing. One line per problem.
    """
    sources: Sources = read_sources(Settings, config, overrides or {})
    settings = validate(Settings, sources)
    if not settings.models.is_dir():
        given = sources.origin(("models",)) or "models"
        raise SettingsError([f"{given}: no folder {settings.models.absolute()}; name the folder that holds models by --models DIR or {ENV_PREFIX}MODELS"])
    return settings


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1", "[::1]"} or host.startswith("127.") or host.startswith("unix:")
