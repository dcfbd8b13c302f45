//! The HTTP server as a whole: the [server](super::server) in front, the [handlers](super::handlers) behind it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use rand::Rng;
use rand::distr::Alphanumeric;

use super::handlers::{Handler, HandlerPool};
use super::server::handler_request::Answers;
use super::server::limits::Limits;
use super::server::{Backend, Server};
use crate::config::Listen;

/// Open listeners, and the threads that serve them. Dropping it stops it.
pub struct HttpServer {
    // In this order: clients go first, then the handlers.
    server: Server,
    handlers: HandlerPool,
    broken: Receiver<String>,
}

impl HttpServer {
    /// Opens the listeners and starts the threads: one for the server, [`Limits::handler_requests`] for the handlers.
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
        let (answers, answered) = Answers::new().map_err(|error| format!("no sockets: {error}"))?;
        let backend = Backend {
            socket: PathBuf::new(),
            secret,
            answers,
            broken: report,
        };
        let handlers = HandlerPool::open(limits.handler_requests, &backend, handler)?;
        let backend = Backend {
            socket: handlers.socket(),
            ..backend
        };
        let server = Server::open(listen, limits, backend, answered)?;
        Ok(Self {
            server,
            handlers,
            broken,
        })
    }

    /// The TCP addresses really taken, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// Gives a sentence when the server has failed for good and the process should end with an error. Gives
    /// nothing otherwise.
    pub fn broken(&self) -> &Receiver<String> {
        &self.broken
    }

    /// Closes the listeners and joins every thread. Idle clients are dropped at once; requests that are with a handler
    /// are waited for, their clients no longer than [`Limits::stop`].
    pub fn stop(mut self) {
        self.server.stop();
        self.handlers.stop();
    }
}
