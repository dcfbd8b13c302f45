//! The open doors: the [gate](super::gate) in front, the [desk](super::desk) behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use rand::Rng;
use rand::distr::Alphanumeric;

use super::desk::{Desk, Handler};
use super::gate::limits::Limits;
use super::gate::{Behind, Gate};
use crate::config::Listen;

/// Open listeners, and the threads that serve them. Dropping it stops it.
pub struct HttpDoor {
    // In this order: clients go first, then the handlers.
    gate: Gate,
    desk: Desk,
    broken: Receiver<String>,
}

impl HttpDoor {
    /// Opens the listeners and starts the threads: one for the gate, [`Limits::exchanges`] for the handlers.
    ///
    /// # Errors
    /// A listener cannot be opened (the sentence names it), or the machine has no room for a directory or a thread.
    pub fn open(listen: &[Listen], limits: Limits, handler: Arc<Handler>) -> Result<Self, String> {
        let secret: String = rand::rng()
            .sample_iter(Alphanumeric)
            .take(32)
            .map(char::from)
            .collect();
        let secret: Arc<str> = secret.into();
        let (report, broken) = bounded(1);
        let desk = Desk::open(limits.exchanges, &secret, handler, &report)?;
        let behind = Behind {
            socket: desk.socket(),
            secret,
            broken: report,
        };
        let gate = Gate::open(listen, limits, behind)?;
        Ok(Self { gate, desk, broken })
    }

    /// The TCP addresses really taken, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.gate.addresses()
    }

    /// Gives a sentence when the doors have failed for good and the process should end with an error. Gives
    /// nothing otherwise.
    pub fn broken(&self) -> &Receiver<String> {
        &self.broken
    }

    /// Closes the doors and joins every thread. Idle clients are dropped at once; requests that are with a handler
    /// are waited for, their clients no longer than [`Limits::stop`].
    pub fn stop(mut self) {
        self.gate.stop();
        self.desk.stop();
    }
}
