//! Says in the log when this process stood still: whoever asks later why something took a second should not have to guess
//! whether the machine or dfs was slow.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// That much later than asked for is worth a line: leases and elections count in a few of these.
const LATE: Duration = Duration::from_millis(200);

/// Looks until the runtime ends.
pub(crate) fn watch() {
    tokio::spawn(async {
        loop {
            let before = Instant::now();
            sleep(PAUSE).await;
            let late = before.elapsed().saturating_sub(PAUSE);
            if late >= LATE {
                tracing::warn!(
                    late_ms = late.as_millis() as u64,
                    "this process stood still: it was stopped, or the machine has too few cores or too little memory for its load"
                );
            }
        }
    });
}
