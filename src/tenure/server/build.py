"""Puts a server together: which driver, which database, which service behind which socket of an office's doorway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from tenure.channels.inbox import Inbox
from tenure.data.connections.room import Connections
from tenure.data.connections.store import ConnectionStore
from tenure.data.database import OFFICE_ENVIRONMENT
from tenure.data.ingestion.loader import Sessions
from tenure.data.ingestion.loads import Loads
from tenure.data.ingestion.parser import Parsers
from tenure.data.ingestion.pipeline import PipelineStore
from tenure.data.ingestion.pipelines import Pipelines
from tenure.data.ingestion.record import Target
from tenure.data.ingestion.spool import Spool
from tenure.data.ingestion.store import LoadStore
from tenure.data.query.search.models import Models
from tenure.data.s3.access_keys import AccessKeys
from tenure.data.s3.app import s3_app
from tenure.data.s3.clients import OFFICE_ENVIRONMENT as S3_ENVIRONMENT
from tenure.data.s3.keys import KeyStore, ensure_master_key
from tenure.data.s3.shared import SharedBuckets
from tenure.data.s3.shared_store import SharedBucketStore
from tenure.data.s3.sources import Buckets
from tenure.data.shared.databases import Databases
from tenure.data.shared.store import DatabaseStore
from tenure.data.webhooks.hooks import Webhooks, utc_now
from tenure.data.webhooks.receiver import Receiver
from tenure.data.webhooks.spool import Spool as DeliverySpool
from tenure.data.webhooks.store import HookStore
from tenure.database.connect import ControlDatabase
from tenure.faultpoints import arm_from_environment
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.endings import Endings
from tenure.identity.grants import GrantStore
from tenure.offices import furnish
from tenure.offices.archives.archiving import Archiving
from tenure.offices.archives.depot import Depot
from tenure.offices.archives.exports import Exports
from tenure.offices.archives.imports import Imports
from tenure.offices.archives.store import ExportStore
from tenure.offices.care import Care
from tenure.offices.history import History
from tenure.offices.life import Offices
from tenure.offices.log import office_log
from tenure.offices.models import OfficeRecord
from tenure.offices.neighbours import NeighbourSource
from tenure.offices.office import Listener, ListenerFactory, OfficeParts
from tenure.offices.sandboxes.gvisor import GvisorDriver
from tenure.offices.snapshot_store import SnapshotStore
from tenure.offices.snapshots import Snapshots
from tenure.offices.spares import SpareVolumes
from tenure.offices.store import OfficeStore
from tenure.offices.volumes import detect_driver
from tenure.secrets.egress.clients import office_environment
from tenure.secrets.egress.presets import read_host_clients
from tenure.secrets.egress.proxy import Decision, EgressProxy
from tenure.secrets.egress.rules import Preset, check_entries
from tenure.secrets.kept import KeptSecrets
from tenure.server import office_files
from tenure.server.app import create_app
from tenure.server.brains import Brains
from tenure.server.chores import Chore, doing
from tenure.server.gateway.hooks import with_hooks
from tenure.server.gateway.host_key import ensure_host_key, public_text
from tenure.server.gateway.keys import SshKeyStore
from tenure.server.gateway.passes import Passes
from tenure.server.gateway.preview import with_previews
from tenure.server.gateway.ssh import SshGateway
from tenure.server.listeners import serve_office_api
from tenure.server.load_sources import FILE_BYTES_MAX, LoadOffices, LoadSources, SharedSessions
from tenure.server.main import Built, Ground
from tenure.server.services import Gateway, Services, Triggers
from tenure.settings import Settings
from tenure.setup import current_image, ensure_pool_mounted
from tenure.triggers.actions import Actions
from tenure.triggers.goals import GoalAction
from tenure.triggers.schedules import Schedules
from tenure.triggers.store import ScheduleStore
from tenure.use import Use
from tenure.work.carried import CarriedRuns
from tenure.work.claims import release_claims, worker_id
from tenure.work.runs import Runs
from tenure.work.signals import SignalStore

LIMITS_EVERY_S = 2.0
EXPORTS_EVERY_S = 5.0
REST_EVERY_S = 1.0
POOL_EVERY_S = 2.0
SUPERVISE_EVERY_S = 5.0
DATABASES_EVERY_S = 1.0
GRANTS_EVERY_S = 1.0
SCHEDULES_EVERY_S = 1.0
TIDY_EVERY_S = 3600.0
PIPELINES_EVERY_S = 2.0
LOADS_EVERY_S = 600.0
HOOKS_EVERY_S = 2.0
S3_HOSTS = ("s3",)
"""Names of the object storage in an office."""
S3_HOSTS_OUTSIDE = ("localhost",)
OFFICE_PATH = "/home/agent/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@asynccontextmanager
async def build(ground: Ground) -> AsyncGenerator[Built]:
    """The real services on real drivers. Raises `SetupError` where the machine lacks something."""
    arm_from_environment()  # for tests
    settings = ground.settings
    async with ControlDatabase(ground.dsn) as database:
        listeners: dict[str, ListenerFactory] = {}
        volumes = detect_driver(settings.pool_dir)
        store = OfficeStore(database)
        neighbours: list[NeighbourSource] = []
        depot = Depot(settings, volumes, store, current_image(settings).path)
        parts = OfficeParts(
            settings=settings,
            sandboxes=GvisorDriver(settings.runsc_root),
            volumes=volumes,
            spares=SpareVolumes(volumes, settings.volumes_dir, partial(furnish.in_common, settings)),
            listeners=listeners,
            environment=environment(settings),
            mount_pool=partial(ensure_pool_mounted, settings),
            depot=depot,
            neighbours=neighbours,
        )
        runs = Runs(database)
        history = History(database, partial(office_log, settings))
        inbox = Inbox(database)

        async def leave(agent: str, key: str, subject: str, body: str) -> None:
            await inbox.create(agent=agent, key=key, subject=subject, body=body)

        clients = await asyncio.to_thread(read_host_clients)
        offices = Offices(
            store,
            parts,
            current_image(settings),
            lambda find_office: Snapshots(SnapshotStore(database), parts, runs.open_of, find_office),
            partial(Care.of, parts, history, runs.open_of, leave),
            check_egress=lambda entries: check_entries(entries, clients.presets),
        )
        exports = Exports(
            ExportStore(database),
            parts,
            offices,
            CarriedRuns(database),
            inbox,
        )
        imports = Imports(
            parts,
            offices,
            CarriedRuns(database),
            current_image(settings).path,
            lambda entries: check_entries(entries, clients.presets),
        )
        grants = GrantStore(database)
        databases = Databases(
            DatabaseStore(database), grants, settings, volumes, offices.need, offices.neighbours_changed
        )
        neighbours.append(databases)
        buckets = SharedBuckets(
            SharedBucketStore(database), grants, settings, volumes, offices.need, offices.has_bucket
        )
        connections = Connections(
            ConnectionStore(database),
            grants,
            KeptSecrets(settings.keys_dir / "kept"),
            lambda agent, text: office_log(settings, agent).write("connection", text),
            offices.neighbours_changed,
        )
        neighbours.append(connections)
        # A grant of a bucket is asked for at each request.
        endings = Endings(grants, {"database": databases.end, "connection": connections.end})
        offices.on_deleted(lambda agent: endings.forget(Principal(PrincipalKind.OFFICE, agent)))
        access_keys = await _access_keys(ground, database, store)
        sources = LoadSources(
            LoadOffices(offices),
            clients.presets,
            partial(_read_office_file, offices),
            lambda agent, decision: office_log(settings, agent).write("egress", str(decision)) if agent else None,
        )
        load_store = LoadStore(database)
        loads = Loads(
            load_store, Spool(settings), Parsers(), sources, lambda target: _sessions(offices, databases, target)
        )
        pipelines = Pipelines(PipelineStore(database), load_store, loads, sources)
        models = Models.of(settings)
        keys, host_key = SshKeyStore(database), await asyncio.to_thread(ensure_host_key, settings)
        ssh = SshGateway(offices, keys, host_key)
        brains = Brains(store)
        schedules = Schedules(ScheduleStore(database), Actions(GoalAction(runs, brains)))
        webhooks = Webhooks(
            HookStore(database),
            Receiver(
                offices.database, await asyncio.to_thread(DeliverySpool, settings.home / "webhooks"), leave, utc_now
            ),
            KeptSecrets(settings.keys_dir / "webhooks"),
        )
        offices.on_deleted(webhooks.forget)
        services = Services(
            settings=settings,
            offices=offices,
            runs=runs,
            inbox=inbox,
            started_at=datetime.now(UTC),
            gateway=Gateway(keys, Passes(ground.tokens.owner), public_text(host_key), ground.ssh_problem, ssh.hang_up),
            exports=exports,
            imports=imports,
            archiving=Archiving(settings, exports, depot, offices, runs.open_of),
            signals=SignalStore(database),
            brains=brains,
            databases=databases,
            triggers=Triggers(schedules, webhooks),
            buckets=buckets,
            access_keys=access_keys,
            s3_problem=ground.s3_problem,
            loads=loads,
            pipelines=pipelines,
            connections=connections,
            models=models,
            database="embedded" if settings.database_url is None else "TENURE_DATABASE_URL",
            worker_pids=ground.worker_pids,
        )
        app = create_app(services, ground.tokens)
        every_bucket = Buckets(offices.objects, buckets)

        def objects_of(record: OfficeRecord) -> ASGIApp:
            at_door = access_keys.authenticator(_office(record))
            return s3_app(every_bucket, at_door, events=parts.object_events, hosts=S3_HOSTS)

        listeners |= {
            "api": lambda record, path, use: serve_office_api(app, _office(record), path, use),
            "s3": lambda record, path, use: serve_office_api(objects_of(record), _office(record), path, use),
            "egress": lambda record, path, use: _serve_egress(settings, record, clients.presets, path, use),
        }
        await databases.adopt_all()  # before offices, whose programs may be at them again at once
        await offices.adopt_all()
        await exports.tidy()
        await loads.tidy()
        await buckets.adopt_all()
        chores = [
            Chore("keeping the pool mounted", POOL_EVERY_S, partial(asyncio.to_thread, parts.mount_pool)),
            Chore("keeping disk limits", LIMITS_EVERY_S, partial(volumes.keep_limits, settings.pool_dir)),
            Chore("exporting by schedule", EXPORTS_EVERY_S, exports.schedules.run_due),
            Chore("putting idle offices to rest", REST_EVERY_S, offices.rest_idle),
            Chore("bringing in deliveries that wait", HOOKS_EVERY_S, webhooks.receiver.drain),
            Chore("counting deliveries", HOOKS_EVERY_S, webhooks.count),
            Chore("firing schedules", SCHEDULES_EVERY_S, schedules.run_due),
            Chore("forgetting schedules that are over", TIDY_EVERY_S, schedules.tidy),
            Chore("looking after offices", SUPERVISE_EVERY_S, offices.supervise),
            Chore("keeping limits of shared databases", DATABASES_EVERY_S, databases.look),
            Chore("letting shared databases sleep", REST_EVERY_S, databases.rest_idle),
            Chore("running pipelines", PIPELINES_EVERY_S, pipelines.run_due),
            Chore("ending loads that nobody answers", LOADS_EVERY_S, loads.end_forgotten),
            Chore("backing up shared databases", DATABASES_EVERY_S, databases.ship),
            Chore("ending grants", GRANTS_EVERY_S, endings.sweep),
        ]
        guarding = asyncio.create_task(offices.guard_memory(), name="guarding memory")
        try:
            async with doing(chores):
                yield Built(
                    app,
                    worker_id,
                    lambda name: release_claims(database, name),
                    web=with_previews(with_hooks(app, webhooks), services, ground.tokens),
                    ssh=ssh,
                    s3=s3_app(
                        every_bucket, access_keys.authenticator(), events=parts.object_events, hosts=S3_HOSTS_OUTSIDE
                    ),
                )
        finally:
            guarding.cancel()
            await loads.close()
            await exports.close()
            await offices.close()
            await databases.close()
            await models.close()


async def _access_keys(ground: Ground, database: ControlDatabase, store: OfficeStore) -> AccessKeys:
    master = await asyncio.to_thread(ensure_master_key, ground.settings.s3_key_file)

    async def number_of(agent: str) -> int:
        return (await store.get(agent)).number

    port = 0 if ground.s3_problem else ground.settings.s3_port
    return AccessKeys(KeyStore(database, master), master, number_of, f"http://localhost:{port}" if port else "")


def environment(settings: Settings) -> dict[str, str]:
    """What every command in an office finds: its neighbours, the way out, a sane locale."""
    return {
        "LANG": "C.UTF-8",
        "PATH": OFFICE_PATH,
        "TENURE_URL": "http://api:8700",
        "TENURE_OBJECTS_URL": "http://s3:9000",
        **S3_ENVIRONMENT,
        **OFFICE_ENVIRONMENT,
        **office_environment(),
    }


async def _sessions(offices: Offices, databases: Databases, target: Target) -> Sessions:
    """The database that a load goes into: an agent's as itself, a shared one as its owner."""
    if target.agent:
        return await offices.database(target.agent)
    await databases.need(target.database)
    return SharedSessions(databases, target.database)


async def _read_office_file(offices: Offices, agent: str, path: str) -> AsyncIterator[bytes]:
    return await office_files.read_file(offices, agent, "agent", path, FILE_BYTES_MAX)


def _office(record: OfficeRecord) -> Principal:
    return Principal(PrincipalKind.OFFICE, record.name)


async def _serve_egress(
    settings: Settings, record: OfficeRecord, presets: Mapping[str, Preset], path: Path, use: Use
) -> Listener:
    log = office_log(settings, record.name)

    def tell(decision: Decision) -> None:
        log.write("egress", str(decision))

    proxy = EgressProxy(record.name, record.egress, presets, on_decision=tell, use=use)
    await proxy.serve(path)
    return proxy
