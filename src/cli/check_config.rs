//! `roomkeeper check-config`: what is wrong in a configuration, and what would be used.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Global, output};
use crate::config::file::{self, Examined};
use crate::config::{Config, HomeserverPolicy, Listen, LogFormat, Notify, OverwriteWhen};
use crate::database::Database;
use crate::error::{EXIT_USAGE, Error};
use crate::plural::count;
use crate::store::db::refuse_unsupported;

/// Says all of it at once. Exit code 2 when something is wrong.
pub(super) fn check_config(global: &Global) -> Result<ExitCode, Error> {
    if global.config.is_empty() {
        return Err(Error::Config(
            "say which configuration: -c homeserver.yaml".into(),
        ));
    }
    let instead = global.database.as_deref().map(Database::of_path);
    let Examined {
        files,
        config,
        warnings,
    } = file::examine(&global.config, instead);
    let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    let (used, errors) = match &config {
        Ok(config) => match refuse_unsupported(&config.database) {
            Ok(()) => (used(config), Vec::new()),
            Err(e) => (Vec::new(), vec![e.to_string()]),
        },
        Err(errors) => (Vec::new(), errors.iter().map(ToString::to_string).collect()),
    };
    if global.json {
        let used: serde_json::Map<String, Value> = used
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        let warnings: Vec<Value> = warnings
            .iter()
            .map(|w| json!({"file": w.file, "line": w.line, "warning": w.text}))
            .collect();
        output::json(
            &json!({"files": files, "errors": errors, "warnings": warnings, "used": used}),
        );
    } else {
        output::say(&format!("read: {}", files.join(", ")));
        for error in &errors {
            output::say(&format!("wrong: {error}"));
        }
        for warning in &warnings {
            output::say(&format!("look at: {warning}"));
        }
        if errors.is_empty() {
            output::say("This would be used:");
            let width = used.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
            for (key, value) in &used {
                output::say(&format!("  {key:width$}  {value}"));
            }
        } else {
            output::say(&format!(
                "{}; nothing would be used.",
                count(errors.len() as u64, "mistake")
            ));
        }
    }
    Ok(match errors.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_USAGE),
    })
}

/// What a configuration means, without secrets.
fn used(config: &Config) -> Vec<(&'static str, String)> {
    let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
    let list = |items: Vec<String>| match items.is_empty() {
        true => "none".to_owned(),
        false => items.join(", "),
    };
    let listen = config.listen.iter().map(|listen| match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    });
    let endpoints = &config.endpoints;
    let signs = endpoints
        .pid_files
        .iter()
        .map(|path| path.display().to_string());
    let signs = signs.chain(endpoints.listeners.iter().map(ToString::to_string));
    let retention = &config.retention;
    let policy = &retention.default_policy;
    vec![
        ("server_name", config.server_name.clone()),
        ("database", config.database.to_string()),
        ("ledger", config.ledger.display().to_string()),
        ("listen", list(listen.collect())),
        ("trusted proxies", config.trusted_proxies.len().to_string()),
        ("admin token", yes(config.admin_token.is_some())),
        ("metrics token", yes(config.metrics_token.is_some())),
        ("admin user", config.admin_user.to_string()),
        (
            "a running homeserver",
            match config.homeserver {
                HomeserverPolicy::RequireStopped => "is refused",
                HomeserverPolicy::AssumeStopped => "is not looked for",
                HomeserverPolicy::AllowRunning => "may be running",
                HomeserverPolicy::AssumeRunning => "is taken for running",
            }
            .into(),
        ),
        ("it is looked for at", list(signs.collect())),
        (
            "it is asked at",
            config
                .homeserver_api
                .as_ref()
                .map_or("nowhere".into(), |api| format!("http://{}", api.address)),
        ),
        (
            "signing key",
            yes(config.event_signing.signing_key.is_some()),
        ),
        (
            "access tokens",
            match (&config.authentication_service, config.delegated_auth) {
                (Some(service), _) => {
                    format!("the authentication service at {} is asked", service.url())
                }
                (None, true) => "kept elsewhere: only roomkeeper's own works over TCP".into(),
                (None, false) => "looked up in the database".into(),
            },
        ),
        (
            "retention",
            match retention.enabled {
                true => format!(
                    "enabled, {}",
                    count(retention.purge_jobs.len() as u64, "job")
                ),
                false => "not enabled".into(),
            },
        ),
        (
            "default max_lifetime",
            policy
                .max_lifetime
                .map_or("none".into(), |length| length.in_words()),
        ),
        (
            "policies of our own",
            list(
                config
                    .policies
                    .iter()
                    .map(|policy| format!("{} ({})", policy.name, policy.in_words()))
                    .collect(),
            ),
        ),
        ("workers", config.workers.to_string()),
        (
            "batch",
            format!(
                "{}, {} ms",
                count(config.batch.events, "event"),
                config.batch.millis
            ),
        ),
        (
            "overwrite_deleted",
            match config.overwrite_when {
                OverwriteWhen::AtOnce if config.overwrite_deleted => "at_once".into(),
                _ => yes(config.overwrite_deleted),
            },
        ),
        ("keep_jobs", config.keep_jobs.in_words()),
        (
            "log",
            match config.log_format {
                LogFormat::Text => "text".into(),
                LogFormat::Json => "json".into(),
            },
        ),
        (
            "told of ended jobs",
            config.notify.as_ref().map_or("nobody".into(), told),
        ),
    ]
}

/// Who is told, and of what; of an address as much as may be shown.
fn told(notify: &Notify) -> String {
    let command = notify.command.as_ref();
    let command = command.map(|command| command.program.display().to_string());
    let webhook = notify.webhook.as_ref().map(ToString::to_string);
    let who: Vec<String> = command.into_iter().chain(webhook).collect();
    let of = match (notify.complete, notify.failed) {
        (true, false) => "complete",
        (false, true) => "failed",
        _ => "complete and failed",
    };
    format!("{} ({of})", who.join(", "))
}
