//! Services: programs that the sprite keeps running.
//!
//! | route | answer |
//! |---|---|
//! | `GET services`, `GET services/{name}` | what is defined, and how it is doing |
//! | `PUT services/{name}` | defines one and starts it; an equal definition that runs is left alone |
//! | `POST services/{name}/start`, `/restart`, `/stop` | as they say; a stop holds until somebody starts it |
//! | `GET services/{name}/logs` | what it printed, and for a while what it prints |
//! | `POST services/signal` | a signal to its process group |
//! | `DELETE services/{name}` | forgets one that does not run and that no other needs |
//!
//! Definitions are on the sprite's disk ([`store`]), so whenever a container begins, what the disk says is started, unless
//! somebody had stopped it: after a wake, a restore, a restart, in a fork. Each service has a task ([`service`]) that lives as
//! long as the container. What services print goes to logs of the machine ([`log`]) and to whoever follows. A service by itself
//! does not keep the sprite awake.

mod log;
mod manager;
mod routes;
mod service;
mod store;

pub(super) use manager::Services;
pub(super) use routes::router;

use std::time::Duration;

/// How long a service may take to end before it is killed, unless the client says otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
