//! Log lines within a bound: a message that comes again and again is left out, and counted.
//!
//! Every place in the code that logs may write [`BURST`] lines at once and [`PER_SECOND`] in the
//! long run; an error of this program, which may explain what a user was answered,
//! [`BURST_OF_ERRORS`] at once. How many lines were left out is said with the next line of that
//! place. So a log grows slowly even if something fails a thousand times a second.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

const BURST: f64 = 30.0;
const BURST_OF_ERRORS: f64 = 2_000.0;
const PER_SECOND: f64 = 1.0;

/// Lines that one place in the code may still write.
#[derive(Debug)]
struct Allowance {
    most: f64,
    lines: f64,
    since: Instant,
    left_out: u64,
}

impl Allowance {
    const fn new(most: f64, now: Instant) -> Self {
        Self {
            most,
            lines: most,
            since: now,
            left_out: 0,
        }
    }

    /// Takes a line; how many were left out before it. `None`: it is left out itself.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.lines = passed.mul_add(PER_SECOND, self.lines).min(self.most);
        self.since = now;
        if self.lines < 1.0 {
            self.left_out += 1;
            return None;
        }
        self.lines -= 1.0;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// A format that leaves lines out.
#[derive(Debug)]
pub(crate) struct Bounded<F> {
    format: F,
    /// Lines are JSON objects.
    json: bool,
    allowances: Mutex<HashMap<Identifier, Allowance>>,
}

impl<F> Bounded<F> {
    pub(crate) fn new(format: F, json: bool) -> Self {
        Self {
            format,
            json,
            allowances: Mutex::default(),
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for Bounded<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let now = Instant::now();
        let site = event.metadata().callsite();
        let is_own_error = *event.metadata().level() == Level::ERROR && event.metadata().target().starts_with("dfs");
        let most = if is_own_error { BURST_OF_ERRORS } else { BURST };
        let taken = {
            let mut allowances = self.allowances.lock();
            allowances
                .entry(site)
                .or_insert_with(|| Allowance::new(most, now))
                .take(now)
        };
        let Some(left_out) = taken else {
            return Ok(());
        };
        if left_out > 0 {
            let target = event.metadata().target();
            if self.json {
                writeln!(
                    writer,
                    "{{\"left_out\":{left_out},\"like\":\"the next line\",\"target\":\"{target}\"}}"
                )?;
            } else {
                writeln!(writer, "({left_out} more like the next line were left out)")?;
            }
        }
        self.format.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_storm_is_counted_and_others_are_heard() {
        let lines = Lines::default();
        let to = lines.clone();
        let format = Bounded::new(tracing_subscriber::fmt::format().without_time().with_ansi(false), false);
        let subscriber = tracing_subscriber::fmt()
            .event_format(format)
            .with_writer(move || to.clone())
            .finish();
        let storm = |number: u32| tracing::warn!(number, "again");
        tracing::subscriber::with_default(subscriber, || {
            (0..1_000).for_each(storm);
            tracing::warn!("something else");
            std::thread::sleep(Duration::from_millis(1_100));
            storm(1_000);
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!(count("something else"), 1);
        assert!((30..=32).contains(&count("again")), "{text}");
        assert_eq!(count("more like the next line were left out"), 1, "{text}");
        assert!(text.ends_with("again number=1000\n"), "{text}");
    }

    #[test]
    fn what_is_left_out_comes_back_with_time() {
        let start = Instant::now();
        let mut allowance = Allowance::new(BURST, start);
        let mut written = 0;
        for tenth in 0..6_000 {
            let now = start + Duration::from_millis(100 * tenth);
            written += u32::from(allowance.take(now).is_some());
        }
        assert!((620..=635).contains(&written), "{written} lines in ten minutes");
    }
}
