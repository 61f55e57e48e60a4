//! Counters, in the text format of Prometheus.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use kiln_core::ImageName;

/// Upper bounds of the buckets of durations, in milliseconds.
const BUCKETS: [u64; 8] = [1, 5, 25, 100, 500, 2_500, 10_000, 60_000];

/// What the server did since it began.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// By the class of the status, 1xx to 5xx.
    answers: [AtomicU64; 5],
    durations: [AtomicU64; BUCKETS.len() + 1],
    milliseconds: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) published: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

impl Metrics {
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.answers[class].fetch_add(1, Ordering::Relaxed);
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|bound| milliseconds <= *bound).unwrap_or(BUCKETS.len());
        self.durations[bucket].fetch_add(1, Ordering::Relaxed);
        self.milliseconds.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// The text, with how many images and versions there are, and until when their states are good.
    pub(crate) fn text(&self, images: usize, versions: usize, streams: usize, expiries: &[(ImageName, u64)]) -> String {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        };
        family("kiln_images", "gauge", "Images with a version.", images as u64);
        family("kiln_versions", "gauge", "Published versions.", versions as u64);
        family("kiln_connections_total", "counter", "Connections taken.", read(&self.connections));
        family("kiln_connections_open", "gauge", "Connections that are open.", read(&self.open));
        family("kiln_downloads_open", "gauge", "Downloads that are running.", streams as u64);
        family("kiln_sent_bytes_total", "counter", "Bytes of files and blobs sent.", read(&self.sent));
        family("kiln_received_bytes_total", "counter", "Bytes of blobs received.", read(&self.received));
        family("kiln_published_total", "counter", "Versions published through this server.", read(&self.published));
        family("kiln_damaged_total", "counter", "Reads that met a damaged blob.", read(&self.damaged));
        let name = "kiln_state_expires_timestamp_seconds";
        let _ = write!(text, "# HELP {name} When the signed state of an image expires.\n# TYPE {name} gauge\n");
        for (image, expires) in expiries {
            let _ = writeln!(text, "{name}{{image=\"{image}\"}} {expires}");
        }
        text.push_str("# HELP kiln_answers_total Answers by class of status.\n# TYPE kiln_answers_total counter\n");
        for (class, counter) in self.answers.iter().enumerate() {
            let _ = writeln!(text, "kiln_answers_total{{class=\"{}xx\"}} {}", class + 1, read(counter));
        }
        let name = "kiln_answer_seconds";
        let _ = write!(text, "# HELP {name} Time until an answer begins.\n# TYPE {name} histogram\n");
        let mut sum = 0;
        for (place, counter) in self.durations.iter().enumerate() {
            sum += read(counter);
            let bound =
                BUCKETS.get(place).map_or("+Inf".to_owned(), |bound| format!("{}.{:03}", bound / 1000, bound % 1000));
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let whole = read(&self.milliseconds);
        let _ = write!(text, "{name}_sum {}.{:03}\n{name}_count {sum}\n", whole / 1000, whole % 1000);
        text
    }
}
