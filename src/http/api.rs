//! What all endpoints share: the keeper, who may ask, and the way from a request to its answer.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::auth::{Authenticator, loggable};
use super::handlers::{Request, Response};
use super::http_server::HttpServer;
use super::introspection::Introspector;
use super::json::ApiError;
use super::route::{self, Found};
use super::server::limits::Limits;
use crate::config::Secret;
use crate::counters::{COUNTERS, add};
use crate::error::Error;
use crate::ids::UserId;
use crate::keeper::Keeper;
use crate::messages::Session;

/// What the endpoints share.
pub struct Api {
    /// What does the work.
    pub keeper: Keeper,
    authenticator: Authenticator,
}

/// One request on its way to an endpoint.
pub struct Context {
    /// The request.
    pub request: Request,
    /// The parameters of the path, decoded, in its order.
    pub parameters: Vec<String>,
    /// The parameters of the query, decoded, in its order; the first of a name counts (H-62).
    pub query: Vec<(String, String)>,
    who: OnceCell<UserId>,
}

/// Opens the listeners of a keeper, as its configuration says: `listen`, `admin_token`, `admin_user`, `delegated_auth`.
///
/// # Errors
/// [`Error::Config`] when there is nothing to listen on, a listener cannot be opened, or the admin token is one that
/// no client could send.
pub fn serve(keeper: Keeper) -> Result<HttpServer, Error> {
    let config = keeper.config();
    if config.listen.is_empty() {
        return Err(Error::Config(
            "roomkeeper.listen names no address, so nobody could reach the daemon".into(),
        ));
    }
    let static_token = config.admin_token.clone();
    if let Some(token) = static_token.as_ref().map(Secret::reveal)
        && (token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(Error::Config(
            "the admin token must be one word of visible ASCII characters".into(),
        ));
    }
    let service = config.authentication_service.as_ref();
    let service = service.map(|service| Introspector::new(service, &config.server_name));
    let service = service.transpose()?;
    if config.delegated_auth && service.is_none() {
        log::warn!(
            "http: the homeserver keeps its access tokens elsewhere: over TCP only roomkeeper's own token works ({})",
            if static_token.is_some() {
                "there is one"
            } else {
                "there is none: set admin_token_path"
            }
        );
    }
    let listen = config.listen.clone();
    let operator = config.admin_user.clone();
    let authenticator = Authenticator {
        static_token,
        operator,
        is_delegated: config.delegated_auth,
        service,
    };
    let api = Api {
        keeper,
        authenticator,
    };
    let handler = Arc::new(move |request| api.answer(request));
    let limits = Limits {
        class: route::class,
        ..Limits::default()
    };
    HttpServer::open(&listen, limits, handler).map_err(Error::Config)
}

impl Api {
    /// Answers a request, whatever it is, and logs that it did: without tokens and bodies (U-15).
    pub fn answer(&self, request: Request) -> Response {
        let begun = Instant::now();
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((&request.target, ""));
        let found = route::find(&request.method, path);
        let query = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let mut ctx = Context {
            request,
            parameters: Vec::new(),
            query,
            who: OnceCell::new(),
        };
        let mut refused = None;
        let mut refuse = |error: ApiError| {
            refused = Some(error.errcode);
            error.to_response()
        };
        let response = match found {
            Found::Endpoint(endpoint, parameters) => {
                ctx.parameters = parameters;
                endpoint(self, &ctx).unwrap_or_else(&mut refuse)
            }
            // A browser asks before it sends, and wherever it will send to.
            Found::OtherMethods(_) | Found::Nothing if ctx.request.method == "OPTIONS" => {
                Response {
                    status: 204,
                    headers: Vec::new(),
                    body: Vec::new(),
                }
            }
            Found::OtherMethods(methods) => {
                let mut response = refuse(ApiError::unrecognized(405));
                response.headers.push(("Allow", methods.join(", ")));
                response
            }
            Found::Nothing => refuse(ApiError::unrecognized(404)),
        };
        count(&ctx.request, response.status, refused, begun.elapsed());
        let level = if path_is_quiet(&ctx.request.target) {
            log::Level::Debug
        } else {
            log::Level::Info
        };
        log::log!(
            level,
            "http: {} {} by {} over {} -> {} took_ms={}",
            ctx.request.method,
            loggable(&ctx.request.target),
            ctx.who
                .get()
                .map_or(Cow::Borrowed("nobody known"), |who| Cow::Owned(
                    who.to_string()
                )),
            ctx.request.origin.as_str(),
            response.status,
            begun.elapsed().as_millis(),
        );
        response
    }

    /// Who asks, whoever they are; guests, too.
    pub fn user(&self, ctx: &Context) -> Result<Session, ApiError> {
        let who = self.authenticator.requester(&self.keeper, ctx)?;
        ctx.who.get_or_init(|| who.user_id.clone());
        Ok(who.into())
    }

    /// As [`Api::admin`], with how they are logged in.
    pub fn admin_session(&self, ctx: &Context) -> Result<Session, ApiError> {
        let who = self.authenticator.admin_requester(&self.keeper, ctx)?;
        ctx.who.get_or_init(|| who.user_id.clone());
        Ok(who.into())
    }

    /// Who asks, if they are a server admin. The first thing every endpoint for admins does (H-7).
    pub fn admin(&self, ctx: &Context) -> Result<UserId, ApiError> {
        let who = self.authenticator.admin(&self.keeper, ctx)?;
        Ok(ctx.who.get_or_init(|| who).clone())
    }
}

/// Adds a request to the counters of this process.
fn count(request: &Request, status: u16, refused: Option<&str>, took: Duration) {
    let class = route::class(&request.method, &request.target).text();
    let status = status.to_string();
    add(&COUNTERS.requests, (class, &status), 1);
    COUNTERS.request_time.observe(took);
    if let Some(errcode) = refused {
        add(&COUNTERS.request_errors, (errcode, ""), 1);
    }
}

/// Asked every few seconds by whoever watches us.
fn path_is_quiet(target: &str) -> bool {
    ["/_roomkeeper/v1/health", "/metrics"].contains(&target)
}

impl Context {
    /// A parameter of the path; empty when the path has none there.
    pub fn parameter(&self, number: usize) -> &str {
        self.parameters.get(number).map_or("", String::as_str)
    }
}
