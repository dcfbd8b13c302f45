//! `GET /metrics`: what a Prometheus server scrapes. For server admins and whoever may open the socket, like all that tells
//! of the server, and for the one token that reads nothing else; it names no room and no user.
//!
//! Every family is there from the first scrape on, with its description, so that an alert can be written before there is
//! anything to tell.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::handlers::Response;
use super::json::ApiError;
use super::{Api, Context};
use crate::counters::{BOUNDS, COUNTERS, Histogram, Labelled, Wait};
use crate::error::Error;
use crate::keeper::{JobKind, Measures};

/// What all names begin with.
const PREFIX: &str = "roomkeeper";

/// Everything that is measured, now.
pub fn get(api: &Api, ctx: &Context) -> Result<Response, ApiError> {
    api.scraper(ctx)?;
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Scrape {
        measures: api.keeper.measures(),
        is_alive: api.keeper.is_alive() && !api.keeper.is_stopping(),
    }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)
        .map_err(|_| Error::Bug("the metrics could not be written".into()))?;
    Ok(Response {
        status: 200,
        headers: vec![("Content-Type", prometheus_text::CONTENT_TYPE.to_owned())],
        body: text.into_bytes(),
    })
}

#[derive(Debug)]
struct Scrape {
    measures: Measures,
    is_alive: bool,
}

/// Labels and a value.
type Row = (Vec<(&'static str, String)>, f64);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer(encoder);
        let measures = &self.measures;
        out.info()?;
        out.gauge(
            "alive",
            "Whether every thread of the daemon is there and it is not stopping",
            Some(f64::from(u8::from(self.is_alive))),
        )?;
        out.gauge(
            "database_up",
            "Whether the homeserver's database answers",
            Some(f64::from(u8::from(measures.is_database_up))),
        )?;
        self.jobs(&mut out)?;
        self.transactions(&mut out)?;
        self.disk(&mut out)?;
        self.retention(&mut out)?;
        requests(&mut out)
    }
}

impl Scrape {
    fn jobs(&self, out: &mut Writer<'_>) -> fmt::Result {
        let jobs = self.measures.jobs.iter().map(|(kind, state, count)| {
            let labels = vec![("kind", kind.clone()), ("state", state.text().to_owned())];
            (labels, *count as f64)
        });
        out.gauges(
            "jobs",
            "Jobs on record, by kind and state (queued, running, paused, waiting, complete, failed)",
            jobs.collect(),
        )?;
        let ended = COUNTERS.jobs_ended.lock().clone();
        let ended = ended.into_iter().map(|((kind, code), count)| {
            let outcome = if code.is_empty() {
                "complete"
            } else {
                "failed"
            };
            let labels = vec![
                ("kind", kind),
                ("outcome", outcome.to_owned()),
                ("code", code),
            ];
            (labels, count as f64)
        });
        out.counters(
            "jobs_ended",
            "Jobs that ended since the daemon began, by kind, outcome and the code of their error",
            ended.collect(),
        )?;
        out.counters(
            "events_removed",
            "Events deleted since the daemon began, by kind of job",
            by_kind(&COUNTERS.events_removed),
        )?;
        out.counters(
            "rows_removed",
            "Rows deleted from the homeserver's tables since the daemon began, by kind of job",
            by_kind(&COUNTERS.rows_removed),
        )
    }

    fn transactions(&self, out: &mut Writer<'_>) -> fmt::Result {
        out.histograms(
            "transaction_seconds",
            "How long write transactions on the homeserver's database lasted, in which others may have had to wait",
            &[(None, &COUNTERS.transactions)],
        )?;
        let waits = Wait::ALL.map(|(wait, name)| (Some(("for", name)), COUNTERS.wait(wait)));
        out.histograms(
            "wait_seconds",
            "How long roomkeeper waited: for others who write into the database, for a room that others of its own jobs \
             and readers have, for the homeserver's lock on a room",
            &waits,
        )
    }

    fn disk(&self, out: &mut Writer<'_>) -> fmt::Result {
        let measures = &self.measures;
        for (name, help, bytes) in [
            (
                "database_bytes",
                "Bytes of the homeserver's database",
                measures.database_bytes,
            ),
            (
                "database_log_bytes",
                "Bytes of the database's write-ahead log, where that is a file",
                measures.log_bytes,
            ),
            (
                "database_reclaimable_bytes",
                "Bytes of the database file that hold nothing any more, and that roomkeeper reclaim gives back",
                measures.reclaimable_bytes,
            ),
            (
                "database_disk_free_bytes",
                "Bytes free on the disk of the database file",
                measures.database_disk_free,
            ),
            (
                "reserve_bytes",
                "Bytes of the reserve that is given up when the disk is full; 0 when it has been",
                measures.reserve_bytes,
            ),
            (
                "ledger_bytes",
                "Bytes of roomkeeper's own bookkeeping",
                measures.ledger_bytes,
            ),
            (
                "ledger_disk_free_bytes",
                "Bytes free on the disk of roomkeeper's own bookkeeping",
                measures.ledger_disk_free,
            ),
        ] {
            out.gauge(name, help, bytes.map(|bytes| bytes as f64))?;
        }
        Ok(())
    }

    fn retention(&self, out: &mut Writer<'_>) -> fmt::Result {
        let of = |value: fn(&(String, f64, f64)) -> f64| {
            let rows = self.measures.retention.iter();
            rows.map(move |row| (vec![("lifetimes", row.0.clone())], value(row)))
                .collect()
        };
        out.gauges(
            "retention_interval_seconds",
            "How often a retention job is to run, by the lifetimes that it takes",
            of(|row| row.1),
        )?;
        out.gauges(
            "retention_lag_seconds",
            "No message that retention takes is further past its lifetime than this: the time since the last run that \
             ended well began, or, before there was one, since the daemon first counted its interval",
            of(|row| row.2),
        )
    }
}

fn requests(out: &mut Writer<'_>) -> fmt::Result {
    let of = |labelled: &Labelled, names: (&'static str, &'static str)| {
        let rows = labelled.lock().clone();
        let rows = rows.into_iter().map(|((a, b), count)| {
            let labels = [(names.0, a), (names.1, b)];
            let labels = labels.into_iter().filter(|(name, _)| !name.is_empty());
            (labels.collect(), count as f64)
        });
        rows.collect()
    };
    out.counters(
        "http_requests",
        "Requests answered, by class (quick, slow, long) and status",
        of(&COUNTERS.requests, ("class", "status")),
    )?;
    out.histograms(
        "http_request_seconds",
        "How long a handler had a request",
        &[(None, &COUNTERS.request_time)],
    )?;
    out.counters(
        "http_errors",
        "Requests that were answered with an error, by its code",
        of(&COUNTERS.request_errors, ("errcode", "")),
    )?;
    out.counters(
        "http_turned_away",
        "Clients turned away before a handler saw them (malformed, too slow, too many), by status",
        of(&COUNTERS.turned_away, ("status", "")),
    )?;
    out.gauge(
        "http_requests_waiting",
        "Requests that wait for a handler",
        Some(COUNTERS.requests_waiting.load(Relaxed) as f64),
    )?;
    out.gauge(
        "http_connections",
        "Connections that are open",
        Some(COUNTERS.connections.load(Relaxed) as f64),
    )
}

/// By kind of job; nothing is counted twice.
fn by_kind(labelled: &Labelled) -> Vec<Row> {
    let rows = labelled.lock().clone();
    let rows = rows
        .into_iter()
        .filter(|((kind, _), _)| !JobKind::of(kind).has_parts());
    rows.map(|((kind, _), count)| (vec![("kind", kind)], count as f64))
        .collect()
}

/// Writes families, each with its description.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn info(&mut self) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let rows = vec![(vec![("version", version)], 1.0)];
        self.gauges("build_info", "Which roomkeeper this is", rows)
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) -> fmt::Result {
        let rows = value.map(|value| (Vec::new(), value));
        self.gauges(name, help, rows.into_iter().collect())
    }

    fn gauges(&mut self, name: &str, help: &str, rows: Vec<Row>) -> fmt::Result {
        let rows = rows
            .into_iter()
            .map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, MetricType::Gauge, rows)
    }

    fn counters(&mut self, name: &str, help: &str, rows: Vec<Row>) -> fmt::Result {
        let rows = rows
            .into_iter()
            .map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, MetricType::Counter, rows)
    }

    fn family<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl Iterator<Item = (Vec<(&'static str, String)>, M)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, metric) in rows {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn histograms(
        &mut self,
        name: &str,
        help: &str,
        rows: &[(Option<(&'static str, &'static str)>, &Histogram)],
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (label, histogram) in rows {
            let seen = histogram.read();
            // The last bucket, of all there is, the library writes itself.
            let buckets: Vec<_> = BOUNDS.into_iter().zip(seen.counts).collect();
            let labels: Vec<_> = label.iter().copied().collect();
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(seen.sum, seen.count(), &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::add;

    #[test]
    fn what_a_run_or_a_set_of_rooms_removed_is_counted_once() {
        let labelled = Labelled::default();
        for kind in ["purge_history", "retention", "retention_purge", "room_set"] {
            add(&labelled, (kind, ""), 7);
        }
        let kinds: Vec<String> = by_kind(&labelled)
            .into_iter()
            .flat_map(|(labels, _)| labels)
            .map(|(_, kind)| kind)
            .collect();
        assert_eq!(kinds, ["purge_history", "retention_purge"]);
    }
}
