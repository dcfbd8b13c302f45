//! The server: what stands between a client and `tiny_http`.
//!
//! `tiny_http` 0.12 must not face a client bare: one hostile length header aborts the process, doubled lengths let
//! a body run as a second request, and time, heads and connections are unlimited. So the server accepts all
//! connections itself, reads each request whole under a deadline, refuses what has two readings, and hands on bytes
//! that it wrote anew ([`handler_request`]) over a private Unix socket. Answers come back in memory, whole, so that a
//! client who does not read holds a buffer and never a handler thread.
//!
//! One thread does all this with `poll` and sockets that never block. A connection costs a descriptor and what has
//! been read of it, not a thread, so hundreds of slow ones are cheap; when there are too many, those that have been
//! sending one request for the longest are closed ([`connection::Connection::eviction_rank`]).
//!
//! Several requests may follow each other on a connection, each waiting for the answer to the one before; a client
//! that does not wait gets its first answer and the end of the connection.

pub mod chunked;
pub mod connection;
pub mod error_response;
pub mod handler_request;
pub mod head;
pub mod limits;
pub mod listen;
pub mod request_class;

mod event_loop;

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use self::event_loop::EventLoop;
use self::handler_request::Answers;
use self::limits::Limits;
use self::listen::Listener;
use crate::config::Listen;

/// What lies behind the server.
#[derive(Clone, Debug)]
pub struct Backend {
    /// The private socket where `tiny_http` accepts.
    pub socket: PathBuf,
    /// The secret by which the handlers know the server (see [`handler_request::ORIGIN_HEADER`]).
    pub secret: Arc<str>,
    /// Where the handlers leave their answers.
    pub answers: Arc<Answers>,
    /// Told, once, when the server can no longer do its work.
    pub broken: Sender<String>,
}

/// The running server: one thread, named `http-server`.
#[derive(Debug)]
pub struct Server {
    thread: Option<JoinHandle<()>>,
    /// Closed to stop the thread.
    waker: Option<UnixStream>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Opens all listeners, then starts to serve them.
    ///
    /// # Errors
    /// One of them cannot be opened; the sentence names it. None is open then.
    pub fn open(
        addresses: &[Listen],
        limits: Limits,
        backend: Backend,
        answered: UnixStream,
    ) -> Result<Self, String> {
        limits::raise_open_files();
        let mut listeners = Vec::new();
        for address in addresses {
            let opened = listen::open(address);
            listeners.push(opened.map_err(|error| {
                format!("cannot listen on {}: {error}", listen::describe(address))
            })?);
        }
        let addresses = listeners.iter().filter_map(Listener::tcp_address).collect();
        let start = || {
            let (waker, wakened) = UnixStream::pair()?;
            let broken = backend.broken.clone();
            let event_loop = EventLoop::new(
                listeners,
                limits.within_open_files(),
                backend,
                (wakened, answered),
            );
            let thread = std::thread::Builder::new()
                .name("http-server".into())
                .spawn(move || {
                    if catch_unwind(AssertUnwindSafe(move || event_loop.run())).is_err() {
                        let _ = broken.try_send("the server's thread panicked".into());
                    }
                })?;
            Ok((waker, thread))
        };
        let (waker, thread) =
            start().map_err(|error: std::io::Error| format!("cannot start the server: {error}"))?;
        Ok(Self {
            thread: Some(thread),
            waker: Some(waker),
            addresses,
        })
    }

    /// The TCP addresses really taken, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops and joins the thread. Idle clients are dropped at once; requests that are with a handler have
    /// [`Limits::stop`] to finish.
    pub fn stop(&mut self) {
        drop(self.waker.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("http: the server's thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
