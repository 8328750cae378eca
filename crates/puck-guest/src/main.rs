//! The guest agent: first process of a machine.
//!
//! One static binary with three faces. `launch` builds a machine's namespaces on the host and becomes its first process,
//! `agent` is that process, `zygote` is the first process of the container inside.

mod api;
mod browse;
mod check;
mod checkpoints;
mod diff;
mod disk;
mod gateway;
mod internal;
mod machine;
mod network;
mod sockets;
mod view;

use crate::{checkpoints::DiskCheckpoints, gateway::Gateway, internal::Internal, machine::Machine};
use anyhow::Context;
use guest::{
    freeze::Freezer,
    protocol::{AGENT_SOCKET, BOOT_FILE, Boot, CHANNEL, Event, GATEWAY_SOCKET},
};
use std::{fs, path::Path, process::ExitCode, sync::Arc, time::Duration};
use tokio::{net::UnixListener, sync::Notify};
use tracing::error;
use tracing_subscriber::EnvFilter;

/// How long a machine that is asleep waits for its last answers to reach the worker.
const GOODBYE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("agent") => agent(),
        Some("launch") => guest::launch::main(),
        Some("zygote") => guest::zygote::main(),
        _ => {
            eprintln!("puck-guest is started by `puck`; it has no commands of its own");
            ExitCode::from(2)
        }
    }
}

fn agent() -> ExitCode {
    keep_memory_small();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_env_filter(log_filter())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .expect("a runtime needs only threads and an epoll descriptor");
    match runtime.block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the worker asks for, without a complaint that is none: a reply finds nobody only where the kernel has given its
/// request up, because the device is being taken down.
fn log_filter() -> EnvFilter {
    let quiet = "fuser::reply=off".parse().expect("a constant");
    EnvFilter::from_default_env().add_directive(quiet)
}

/// Tells the allocator to give large buffers back to the system when they are freed, and not to keep a heap per thread: an
/// agent seals tens of MB in one moment and is idle in the next.
fn keep_memory_small() {
    const M_TRIM_THRESHOLD: i32 = -1;
    const M_MMAP_THRESHOLD: i32 = -3;
    const M_ARENA_MAX: i32 = -8;
    const LARGE_BYTES: i32 = 256 << 10;
    const HEAPS: i32 = 2;
    // The default gives each buffer of a read back and takes it anew, page by page.
    const KEPT_BYTES: i32 = 4 << 20;
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    // SAFETY: glibc documents it as safe, best called before there are other threads, and there are none.
    let all = unsafe {
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
            & mallopt(M_ARENA_MAX, HEAPS)
            & mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    };
    if all == 0 {
        // Only memory is at stake.
        tracing::debug!("the allocator keeps its own settings");
    }
}

async fn run() -> anyhow::Result<()> {
    let boot: Boot =
        serde_json::from_slice(&fs::read(BOOT_FILE).context("read the boot parameters")?)
            .context("parse the boot parameters")?;
    let channel = Path::new(CHANNEL);
    let gateway = Gateway::new(channel.join(GATEWAY_SOCKET));
    // SAFETY: called once, and nothing else in this process knows of the descriptor.
    let freezer = unsafe { Freezer::inherit() }.context("find the keeper")?;
    let machine = match Machine::boot(boot, &gateway, freezer).await.context("boot the machine") {
        Ok(machine) => machine,
        Err(error) => {
            let event = Event::Failed { reason: format!("{error:#}") };
            gateway.send(&event).await.context("report a failed boot")?;
            return Err(error);
        }
    };
    serve(&machine, &gateway, &channel.join(AGENT_SOCKET)).await
}

async fn serve(machine: &Arc<Machine>, gateway: &Gateway, socket: &Path) -> anyhow::Result<()> {
    let checkpoints = Arc::new(DiskCheckpoints(machine.clone()));
    let agent =
        api::Agent::new(machine.identity(), machine.sandbox(), checkpoints, machine.clone());
    tokio::spawn(api::inside::serve(agent.clone()));
    let asleep = Arc::new(Notify::new());
    let internal = Internal {
        machine: machine.clone(),
        activity: agent.activity().clone(),
        asleep: asleep.clone(),
    };
    let router = internal::router(internal)
        .merge(api::web::router(agent.clone()))
        .merge(api::router(agent.clone()));
    let listener = UnixListener::bind(socket).context("listen for the worker")?;
    let goodbye = asleep.clone();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(async move { goodbye.notified().await });
    let server = tokio::spawn(server.into_future());
    gateway.send(&Event::Ready).await.context("tell the worker that the machine is ready")?;
    tokio::select! {
        result = server => result.context("serve the worker")?.context("serve the worker"),
        () = machine.sync_forever() => say_goodbye().await,
        error = machine.keep_container() => Err(error).context("keep the container running"),
        error = report_idleness(&agent, gateway) => Err(error),
    }
}

/// The machine is asleep: what is left is to let the answer to the worker's call go out.
async fn say_goodbye() -> anyhow::Result<()> {
    tokio::time::sleep(GOODBYE).await;
    Ok(())
}

async fn report_idleness(agent: &api::Agent, gateway: &Gateway) -> anyhow::Error {
    loop {
        agent.idle().await;
        if let Err(error) = gateway.send(&Event::Idle).await {
            return anyhow::Error::new(error).context("tell the worker that the machine is idle");
        }
    }
}

/// Threads of the runtime: two cover an agent that mostly waits, and block devices have threads of their own.
const WORKER_THREADS: usize = 2;
