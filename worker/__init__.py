"""What a backend imports to be served by a Dynamo frontend, in the names and call shapes of Dynamo's own Python API."""

from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.exceptions import (
    Cancelled,
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    DynamoException,
    EngineShutdown,
    HttpError,
    InvalidArgument,
    StreamIncomplete,
    Unknown,
    WorkerUnavailable,
)
from dynamo.shared.runtime import (
    Component,
    DistributedRuntime,
    Endpoint,
    Namespace,
    RuntimeClosed,
    dynamo_endpoint,
    dynamo_worker,
)
from dynamo.shared.serving_config import ServingConfig
from dynamo.worker.config import DEMO_MODEL_DIR, WorkerConfig
from dynamo.worker.kv_publisher import KvEventPublisher, PublisherClosed
from dynamo.worker.load_publisher import WorkerMetricsPublisher
from dynamo.worker.model_types import ModelInput, ModelRuntimeConfig, ModelType, WorkerType
from dynamo.worker.register import (
    ModelDirectoryError,
    register_llm,
    register_model,
    unregister_llm,
    unregister_model,
)

__all__ = [
    "DEMO_MODEL_DIR",
    "Cancelled",
    "CannotConnect",
    "Component",
    "ConnectionTimeout",
    "Context",
    "Disconnected",
    "DistributedRuntime",
    "DynamoException",
    "Endpoint",
    "EngineShutdown",
    "HttpError",
    "InvalidArgument",
    "KvEventPublisher",
    "ModelDirectoryError",
    "ModelInput",
    "ModelRuntimeConfig",
    "ModelType",
    "Namespace",
    "PublisherClosed",
    "RuntimeClosed",
    "ServingConfig",
    "StreamIncomplete",
    "Unknown",
    "WorkerConfig",
    "WorkerMetricsPublisher",
    "WorkerType",
    "WorkerUnavailable",
    "dynamo_endpoint",
    "dynamo_worker",
    "register_llm",
    "register_model",
    "unregister_llm",
    "unregister_model",
]
