//! The gate: what stands between a client and `tiny_http`.
//!
//! `tiny_http` 0.12 must not face a client bare: one hostile length header aborts the process, doubled lengths let
//! a body run as a second request, and time, heads and connections are unlimited. So the gate accepts all
//! connections itself, reads each request whole under a deadline, refuses what has two readings, and hands on bytes
//! that it wrote anew ([`exchange`]) over a private Unix socket. Answers come back into memory first and go to the
//! client after that, so that a client who does not read holds a buffer and never a handler thread.
//!
//! One thread does all this with `poll` and sockets that never block. A connection costs a descriptor and what has
//! been read of it, not a thread, so hundreds of slow ones are cheap; when there are too many, those that have been
//! sending one request for the longest are closed ([`guest::Guest::worth`]).
//!
//! Several requests may follow each other on a connection, each waiting for the answer to the one before; a client
//! that does not wait gets its first answer and the end of the connection.

pub mod exchange;
pub mod guest;
pub mod head;
pub mod lane;
pub mod limits;
pub mod listen;
pub mod refusal;

mod hall;

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use self::hall::Hall;
use self::limits::Limits;
use self::listen::Listener;
use crate::config::Listen;

/// What lies behind the gate.
#[derive(Clone, Debug)]
pub struct Behind {
    /// The private socket where `tiny_http` accepts.
    pub socket: PathBuf,
    /// The secret by which the handlers know the gate (see [`exchange::DOOR_HEADER`]).
    pub secret: Arc<str>,
    /// Told, once, when the gate can no longer do its work.
    pub broken: Sender<String>,
}

/// The running gate: one thread, named `http-gate`.
#[derive(Debug)]
pub struct Gate {
    thread: Option<JoinHandle<()>>,
    /// Closed to stop the thread.
    waker: Option<UnixStream>,
    addresses: Vec<SocketAddr>,
}

impl Gate {
    /// Opens all listeners, then starts to serve them.
    ///
    /// # Errors
    /// One of them cannot be opened; the sentence names it. None is open then.
    pub fn open(addresses: &[Listen], limits: Limits, behind: Behind) -> Result<Self, String> {
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
            let broken = behind.broken.clone();
            let hall = Hall::new(listeners, limits.within_open_files(), behind, wakened);
            let thread = std::thread::Builder::new()
                .name("http-gate".into())
                .spawn(move || {
                    if catch_unwind(AssertUnwindSafe(move || hall.run())).is_err() {
                        let _ = broken.try_send("the gate's thread panicked".into());
                    }
                })?;
            Ok((waker, thread))
        };
        let (waker, thread) =
            start().map_err(|error: std::io::Error| format!("cannot start the gate: {error}"))?;
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
            log::error!("http: the gate's thread panicked");
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop();
    }
}
