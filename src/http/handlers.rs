//! The handlers: `tiny_http` on a private socket, and the threads that take requests from it one by one.

use std::io::Read;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use subtle::ConstantTimeEq;

use super::private::PrivateDir;
use super::server::Backend;
use super::server::error_response::ErrorResponse;
use super::server::handler_request::{FORWARDED_HEADER, ORIGIN_HEADER};
use super::server::limits::MAX_BODY;
use super::server::listen::Origin;
use crate::store::read_limit::ReadLimit;

/// A request, as the handlers see it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method as sent.
    pub method: String,
    /// Path and query, not decoded.
    pub target: String,
    /// The values of all `Authorization` headers.
    pub authorization: Vec<String>,
    /// The body; empty when there is none.
    pub body: Vec<u8>,
    /// Through what kind of listener it came.
    pub origin: Origin,
    /// Who was at the other end, over TCP.
    pub peer: Option<IpAddr>,
    /// The values of all `X-Forwarded-For` headers, in their order.
    pub forwarded_for: Vec<String>,
    /// How long what only reads may take, and whether somebody still waits for it.
    pub limit: Arc<ReadLimit>,
}

/// What a handler answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Headers beyond the length, and `Content-Type` where it is not JSON. Names and values are ASCII.
    pub headers: Vec<(&'static str, String)>,
    /// JSON unless a header says otherwise, or nothing.
    pub body: Vec<u8>,
}

/// Turns a request into an answer. Called by several threads at a time; a panic answers 500 and costs nothing else.
pub type Handler = dyn Fn(Request) -> Response + Send + Sync;

/// The running handlers: `tiny_http`, and a thread for each handler, named `http-1` and so on.
pub struct HandlerPool {
    server: Option<Arc<tiny_http::Server>>,
    threads: Vec<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
    directory: PrivateDir,
}

impl HandlerPool {
    /// Starts `handlers` threads for a server; the socket is theirs to say. The server is told when `tiny_http` fails, which
    /// ends the handlers.
    ///
    /// # Errors
    /// No private directory, no socket, or no thread.
    pub fn open(handlers: usize, backend: &Backend, handler: Arc<Handler>) -> Result<Self, String> {
        let directory =
            PrivateDir::temporary().map_err(|error| format!("no private directory: {error}"))?;
        let server = tiny_http::Server::http_unix(&directory.socket());
        let server = Arc::new(server.map_err(|error| format!("no private socket: {error}"))?);
        let mut pool = Self {
            server: Some(server.clone()),
            threads: Vec::new(),
            stopping: Arc::default(),
            directory,
        };
        for number in 1..=handlers {
            let thread = HandlerThread {
                server: server.clone(),
                backend: backend.clone(),
                handler: handler.clone(),
                stopping: pool.stopping.clone(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("http-{number}"))
                .spawn(move || thread.work());
            pool.threads
                .push(thread.map_err(|error| format!("no thread for requests: {error}"))?);
        }
        Ok(pool)
    }

    /// Where the server connects to.
    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.socket()
    }

    /// Stops: no request is begun any more, those begun are finished, the threads are joined.
    ///
    /// `tiny_http` keeps some idle threads of its own; they notice and end within five seconds.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Some(server) = &self.server {
            for _ in &self.threads {
                server.unblock(); // Each call wakes one.
            }
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("http: a handler thread panicked outside a request");
            }
        }
        // The last owner: its accept thread ends here.
        drop(self.server.take());
    }
}

impl Drop for HandlerPool {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One handler thread.
struct HandlerThread {
    server: Arc<tiny_http::Server>,
    backend: Backend,
    handler: Arc<Handler>,
    stopping: Arc<AtomicBool>,
}

/// It ends when it is told to; in a panic outside a request, or any other end, the server has failed.
impl Drop for HandlerThread {
    fn drop(&mut self) {
        if !self.stopping.load(Ordering::SeqCst) {
            let said = "a handler thread ended unexpectedly";
            // The first one is reason enough.
            let _ = self.backend.broken.try_send(said.into());
        }
    }
}

impl HandlerThread {
    fn work(self) {
        loop {
            let received = self.server.recv();
            if self.stopping.load(Ordering::SeqCst) {
                return; // A request that came with the wake-up is dropped, and answers 500 to a server that is gone.
            }
            match received {
                Ok(request) => self.serve(request),
                Err(error) => {
                    let _ = self
                        .backend
                        .broken
                        .try_send(format!("tiny_http failed: {error}"));
                    return;
                }
            }
        }
    }

    fn serve(&self, mut received: tiny_http::Request) {
        let Some((origin, number, peer)) = self.origin(&received) else {
            log::error!("http: a request on the private socket did not come through the server");
            return;
        };
        let values = |name: &'static str| {
            let headers = received.headers().iter();
            let headers = headers.filter(move |header| header.field.equiv(name));
            headers.map(|header| header.value.as_str().to_owned())
        };
        let mut request = Request {
            method: received.method().as_str().to_owned(),
            target: received.url().to_owned(),
            authorization: values("Authorization").collect(),
            body: Vec::new(),
            origin,
            peer,
            forwarded_for: values(FORWARDED_HEADER).collect(),
            limit: match self.backend.answers.limit(number) {
                Some(limit) => limit,
                None => return, // It was given up.
            },
        };
        // The server sends no more than this; the bound is here for the day it does.
        let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX);
        if let Err(error) = received
            .as_reader()
            .take(limit)
            .read_to_end(&mut request.body)
        {
            log::debug!("http: a request's body broke off: {error}");
            return;
        }
        // The answer goes another way. Without a writer `tiny_http` says nothing of its own, and reads the next request.
        drop(received.into_writer());
        let handle = AssertUnwindSafe(|| (self.handler)(request));
        let response = catch_unwind(handle).unwrap_or_else(|_| {
            log::error!(
                "http: a request handler panicked; the next request is served all the same"
            );
            ErrorResponse::INTERNAL.to_response()
        });
        self.backend.answers.put(number, response);
    }

    /// What the server says about a request, its number, and who sent it; `None` when it does not come from the server.
    fn origin(&self, request: &tiny_http::Request) -> Option<(Origin, u64, Option<IpAddr>)> {
        let header = request
            .headers()
            .iter()
            .find(|header| header.field.equiv(ORIGIN_HEADER))?;
        let (secret, rest) = header.value.as_str().split_once(' ')?;
        if !bool::from(secret.as_bytes().ct_eq(self.backend.secret.as_bytes())) {
            return None;
        }
        let mut words = rest.split(' ');
        let (origin, number) = (words.next()?, words.next()?);
        let origin = [Origin::Tcp, Origin::Unix]
            .into_iter()
            .find(|known| known.as_str() == origin)?;
        let peer = words.next().and_then(|peer| peer.parse().ok());
        Some((origin, number.parse().ok()?, peer))
    }
}
