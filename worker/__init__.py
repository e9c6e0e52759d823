"""What a backend imports to be served by a Dynamo frontend, in the names and call shapes of Dynamo's own Python API."""

from dynamo.worker.config import DEMO_MODEL_DIR, ServingConfig, WorkerConfig
from dynamo.worker.context import Context
from dynamo.worker.errors import (
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
from dynamo.worker.model_types import ModelInput, ModelRuntimeConfig, ModelType, WorkerType
from dynamo.worker.register import (
    ModelDirectoryError,
    register_llm,
    register_model,
    unregister_llm,
    unregister_model,
)
from dynamo.worker.runtime import (
    Component,
    DistributedRuntime,
    Endpoint,
    Namespace,
    RuntimeClosed,
    dynamo_endpoint,
    dynamo_worker,
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
    "ModelDirectoryError",
    "ModelInput",
    "ModelRuntimeConfig",
    "ModelType",
    "Namespace",
    "RuntimeClosed",
    "ServingConfig",
    "StreamIncomplete",
    "Unknown",
    "WorkerConfig",
    "WorkerType",
    "WorkerUnavailable",
    "dynamo_endpoint",
    "dynamo_worker",
    "register_llm",
    "register_model",
    "unregister_llm",
    "unregister_model",
]
