"""
The tracers: how each is told what to trace, and what it has seen afterwards.

Each has the same four parts. Nothing is imported, nor patched, before it is asked for, and nothing is sent anywhere.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import ClassVar

__all__ = ["TRACERS"]

REQUEST = "request"


class OpenTelemetry:
    """
    The instrumentors of opentelemetry-python-contrib, and the SDK's exporter into memory.

    Attributes:
        package: Whose version is told.
        renamed: For a flavour, what has another name on our pool: a pattern, the name on the driver's own pool, and the
            words for a table.
    """

    package = "opentelemetry-instrumentation"
    renamed: ClassVar = {}

    def __init__(self, flavour):
        self._flavour = flavour

    def _provide(self):
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def start(self):
        """Trace what the flavour uses: its driver, and SQLAlchemy."""
        self._provide()
        for name in self._flavour.split("+"):
            # Without this the instrumentor of SQLAlchemy does nothing on SQLAlchemy 2.1.
            self._instrumentor(name).instrument(tracer_provider=self._provider, skip_dep_check=True)

    @staticmethod
    def _instrumentor(name):
        if name == "asyncpg":
            from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor as Instrumentor
        elif name == "psycopg":
            from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor as Instrumentor
        else:
            from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor as Instrumentor
        return Instrumentor()

    @contextmanager
    def request(self):
        """A request of the program's, which the spans belong to."""
        with self._provider.get_tracer("program").start_as_current_span(REQUEST):
            yield

    def spans(self):
        """What was seen, in the order in which it ended: all that can be compared."""
        finished = self._exporter.get_finished_spans()
        names = {span.context.span_id: span.name for span in finished}
        return [
            {
                "name": span.name,
                "parent": None if span.parent is None else names.get(span.parent.span_id, "unknown"),
                "kind": span.kind.name,
                "status": [span.status.status_code.name, span.status.description],
                "attributes": dict(span.attributes),
                "events": [[event.name, event.attributes.get("exception.type")] for event in span.events],
            }
            for span in finished
            if span.name != REQUEST
        ]


class Logfire(OpenTelemetry):
    """Pydantic's SDK, which drives OpenTelemetry's instrumentors."""

    package = "logfire"

    def start(self):
        """Configure it to send nothing, and let it instrument."""
        import logfire
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        seen = SimpleSpanProcessor(self._exporter)
        logfire.configure(
            send_to_logfire=False, console=False, inspect_arguments=False, additional_span_processors=[seen]
        )
        self._logfire = logfire
        for name in self._flavour.split("+"):
            getattr(logfire, f"instrument_{name}")()

    @contextmanager
    def request(self):
        """One of logfire's own spans."""
        with self._logfire.span(REQUEST):
            yield


class Sentry:
    """Sentry's SDK, with the integrations that it has for the drivers."""

    package = "sentry-sdk"
    # It tells cursors by their exact class.
    renamed: ClassVar = {"asyncpg": (r"db\.cursor\.(iter|fetch)", "db", "`op` of a cursor: `db`")}

    def __init__(self, flavour):
        self._flavour = flavour
        self._transactions = []

    def start(self):
        """Keep what it would send."""
        import sentry_sdk
        from sentry_sdk.transport import Transport

        kept = self._transactions

        class Kept(Transport):
            def capture_envelope(self, envelope):
                kept.extend(item.payload.json for item in envelope.items if item.type == "transaction")

        sentry_sdk.init(dsn="http://key@localhost/1", transport=Kept, traces_sample_rate=1.0, integrations=self._own())
        self._sdk = sentry_sdk

    def _own(self):
        from sentry_sdk.integrations.asyncpg import AsyncPGIntegration
        from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration

        integrations = {"asyncpg": AsyncPGIntegration, "sqlalchemy": SqlalchemyIntegration}
        return [integrations[name]() for name in self._flavour.split("+") if name in integrations]

    @contextmanager
    def request(self):
        """A transaction."""
        with self._sdk.start_transaction(name=REQUEST):
            yield

    def spans(self):
        """The spans of the transaction."""
        self._sdk.flush()
        return [
            {"name": span["op"], "statement": span["description"], "status": span.get("status")}
            for transaction in self._transactions
            for span in transaction["spans"]
        ]


class Ddtrace:
    """Datadog's, which puts a proxy around each of psycopg's connections."""

    package = "ddtrace"
    # It calls a connection's spans after the module of its class.
    _name = (r"loopaware_pool\.connection", "psycopg.connection", "`loopaware_pool.connection.*`")
    renamed: ClassVar = {"psycopg": _name, "sqlalchemy+psycopg": _name}

    def __init__(self, flavour):
        self._flavour = flavour
        self._kept = []

    def start(self):
        """Keep what it would send."""
        import os

        os.environ.update(DD_INSTRUMENTATION_TELEMETRY_ENABLED="0", DD_REMOTE_CONFIGURATION_ENABLED="0")
        import ddtrace
        from ddtrace.trace import TraceFilter, tracer

        kept = self._kept

        class Keep(TraceFilter):
            def process_trace(self, trace):
                kept.extend(trace)

        tracer.configure(trace_processors=[Keep()])
        ddtrace.patch(**dict.fromkeys(self._flavour.split("+"), True))
        self._tracer = tracer

    @contextmanager
    def request(self):
        """A span without a parent."""
        with self._tracer.trace(REQUEST):
            yield

    def spans(self):
        """The spans of the request, in the order in which they began."""
        names = {span.span_id: span.name for span in self._kept}
        roots = [span.trace_id for span in self._kept if span.name == REQUEST]
        return [
            {
                "name": span.name,
                "statement": span.resource,
                "parent": names.get(span.parent_id),
                "error": bool(span.error),
            }
            for span in self._kept
            if span.trace_id in roots and span.name != REQUEST
        ]


class NewRelic:
    """New Relic's agent, which puts a proxy around each of psycopg's connections."""

    package = "newrelic"
    renamed: ClassVar = {
        "psycopg": (
            r"loopaware_pool\.psycopg:LoopAwareConnection",
            "psycopg:AsyncConnection",
            "`LoopAwareConnection.*`",
        )
    }

    def __init__(self, flavour):
        self._kept = []

    def start(self):
        """Start the agent so that it speaks to nobody, and keep what it would send."""
        import os

        os.environ["NEW_RELIC_DEVELOPER_MODE"] = "true"
        import newrelic.agent
        from newrelic.core.application import Application

        newrelic.agent.initialize()
        self._agent = newrelic.agent
        self._application = newrelic.agent.register_application(timeout=10.0)
        record, kept = Application.record_transaction, self._kept

        def keep(self, data):
            kept.append(data)
            return record(self, data)

        Application.record_transaction = keep

    @contextmanager
    def request(self):
        """A background task."""
        with self._agent.BackgroundTask(self._application, REQUEST):
            yield

    def spans(self):
        """The nodes of the trace."""
        return [row for transaction in self._kept for row in self._rows(transaction.root, REQUEST)]

    def _rows(self, node, parent):
        for child in node.children:
            statement = getattr(child, "sql", None)
            name = getattr(child, "name", None) or type(child).__name__
            yield {"name": name, "statement": statement, "parent": parent}
            yield from self._rows(child, name)


class ElasticApm:
    """Elastic's agent, which puts a proxy around each of psycopg's connections."""

    package = "elastic-apm"
    renamed: ClassVar = {}

    def __init__(self, flavour):
        pass

    def start(self):
        """Keep what it would send."""
        import elasticapm
        from elasticapm.transport.base import Transport

        kept = self._kept = []

        class Kept(Transport):
            def queue(self, event_type, data, flush=False):
                if data is not None:  # what is sent is text: the agent keeps no object of the program's for it
                    kept.append((event_type, json.loads(self._json_serializer(data))))

            def start_thread(self, pid=None):
                pass

        module = type(self).__module__
        globals()["Kept"] = Kept
        self._client = elasticapm.Client(
            service_name="program",
            transport_class=f"{module}.Kept",
            transaction_sample_rate=1.0,
            span_compression_enabled=False,
            cloud_provider="none",
            central_config=False,
            metrics_interval="0s",
            disable_log_record_factory=True,
        )
        elasticapm.instrument()

    @contextmanager
    def request(self):
        """A transaction."""
        self._client.begin_transaction(REQUEST)
        try:
            yield
        finally:
            self._client.end_transaction(REQUEST)

    def spans(self):
        """The spans of the transaction, in the order in which they ended."""
        spans = [data for kind, data in self._kept if kind == "span"]
        names = {span["id"]: span["name"] for span in spans}
        return [
            {
                "name": f"{span['type']}.{span.get('subtype')}.{span.get('action')} {span['name']}",
                "statement": span.get("context", {}).get("db", {}).get("statement"),
                "parent": names.get(span["parent_id"], REQUEST),
                "outcome": span.get("outcome"),
            }
            for span in spans
        ]


TRACERS = {
    "opentelemetry": OpenTelemetry,
    "logfire": Logfire,
    "sentry": Sentry,
    "ddtrace": Ddtrace,
    "newrelic": NewRelic,
    "elastic-apm": ElasticApm,
}
