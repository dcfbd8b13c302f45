//! What all endpoints share: the keeper, who may ask, and the way from a request to its answer.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::auth::{Authenticator, loggable};
use super::handlers::{Request, Response};
use super::http_server::HttpServer;
use super::introspection::Introspector;
use super::json::{self, ApiError};
use super::route::{self, Found};
use super::server::limits::Limits;
use super::server::listen::Origin;
use crate::config::{Network, Secret};
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
    trusted_proxies: Vec<Network>,
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
    let metrics_token = config.metrics_token.clone();
    for (what, token) in [("admin", &static_token), ("metrics", &metrics_token)] {
        if let Some(token) = token.as_ref().map(Secret::reveal)
            && (token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(Error::Config(format!(
                "the {what} token must be one word of visible ASCII characters"
            )));
        }
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
        metrics_token,
        operator,
        is_delegated: config.delegated_auth,
        service,
    };
    let trusted_proxies = config.trusted_proxies.clone();
    let api = Api {
        keeper,
        authenticator,
        trusted_proxies,
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
        // Whoever comes by the socket is no client of Synapse's, whatever they ask for: our own command line among them.
        let is_ours = path.starts_with("/_roomkeeper/") || request.origin == Origin::Unix;
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
            error.to_response(is_ours)
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
            "http: {} {} by {} over {} -> {} took_ms={}{}",
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
            match ctx.request.peer {
                Some(_) => format!(" from={}", self.client(&ctx)),
                None => String::new(),
            },
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

    /// The keeper on behalf of who asks, for what starts jobs: who it was, and from where, stands in their records.
    pub fn keeper_for(&self, ctx: &Context, who: &UserId) -> Keeper {
        let from = match ctx.request.origin {
            Origin::Unix => "by the socket".to_owned(),
            Origin::Tcp => format!("from {}", self.client(ctx)),
        };
        self.keeper.on_behalf_of(&format!("{who} {from}"))
    }

    /// The same, bound to the plan that a body names, if it names one.
    ///
    /// # Errors
    /// 400 for what is no plan.
    pub fn keeper_as_planned(
        &self,
        ctx: &Context,
        who: &UserId,
        body: &Map<String, Value>,
    ) -> Result<Keeper, ApiError> {
        let keeper = self.keeper_for(ctx, who);
        Ok(match json::plan(body)? {
            Some(plan) => keeper.as_planned(plan),
            None => keeper,
        })
    }

    /// From where somebody asks: who is at the other end, or whom a proxy that is trusted speaks for. Of what proxies say
    /// after each other, only the part counts that trusted ones said.
    fn client(&self, ctx: &Context) -> String {
        let Some(peer) = ctx.request.peer else {
            return "an unknown address".to_owned();
        };
        let entries = ctx.request.forwarded_for.iter();
        let entries = entries.flat_map(|value| value.split(','));
        let mut client = peer;
        for entry in entries.rev() {
            if !self.trusted_proxies.iter().any(|one| one.contains(client)) {
                break;
            }
            match address_of(entry.trim()) {
                Some(address) => client = address,
                None => return format!("an unknown address behind {client}"),
            }
        }
        client.to_string()
    }

    /// Whether somebody may read what is measured.
    pub fn scraper(&self, ctx: &Context) -> Result<(), ApiError> {
        self.authenticator.scraper(&self.keeper, ctx)
    }

    /// Who asks, if they are a server admin. The first thing every endpoint for admins does (H-7).
    pub fn admin(&self, ctx: &Context) -> Result<UserId, ApiError> {
        let who = self.authenticator.admin(&self.keeper, ctx)?;
        Ok(ctx.who.get_or_init(|| who).clone())
    }
}

/// An address, with a port or without: `192.0.2.1`, `192.0.2.1:5`, `::1`, `[::1]:5`.
fn address_of(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
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
