//! Everything that goes to stdout and stderr: lines, tables, JSON; colour only on a terminal.

use std::io::{IsTerminal, Write};

use dfs_common::Timestamp;
use serde::Serialize;

use crate::args::Format;
use crate::failure::{Code, Outcome};

/// One line on stdout. A closed pipe is no error: `dfs status | head` is legal.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// One line on stderr, with the program's name in front.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "dfs: {text}");
}

pub(crate) fn json<T: Serialize>(value: &T) -> Outcome<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// JSON or what `table` prints.
pub(crate) fn print<T: Serialize>(format: Format, value: &T, table: impl FnOnce()) -> Outcome {
    match format {
        Format::Json => json(value)?,
        Format::Table => table(),
    }
    Ok(Code::Ok)
}

/// How a state looks on a terminal.
pub(crate) fn coloured(state: &str) -> String {
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return state.to_owned();
    }
    let colour = match state {
        "ok" | "serving" | "running" | "up" | "leader" | "follower" => 32,
        "degraded" | "syncing" | "waiting" | "stopped" => 33,
        _ => 31,
    };
    format!("\u{1b}[{colour}m{state}\u{1b}[0m")
}

/// Columns as wide as their widest cell, headed in capitals.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn print(&self) {
        for row in self.render() {
            line(&row);
        }
    }

    pub(crate) fn render(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| visible_width(cell)).max().unwrap_or(0)
            })
            .collect();
        self.rows
            .iter()
            .map(|row| {
                let padded = row.iter().zip(&widths).map(|(cell, &width)| {
                    let blanks = width - visible_width(cell);
                    format!("{cell}{}", " ".repeat(blanks))
                });
                padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
            })
            .collect()
    }
}

/// Characters that take room: colour codes do not.
fn visible_width(cell: &str) -> usize {
    let mut width = 0;
    let mut in_code = false;
    for character in cell.chars() {
        match character {
            '\u{1b}' => in_code = true,
            'm' if in_code => in_code = false,
            _ if in_code => {}
            _ => width += 1,
        }
    }
    width
}

/// `1536` is `1.5 KiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut scaled = count as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Two-digit fields of a UTC time (Howard Hinnant's civil-from-days).
pub(crate) fn utc(time: Timestamp) -> String {
    let (seconds, _) = time.to_parts();
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_colour() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["a".into(), "\u{1b}[32mok\u{1b}[0m".into()]);
        table.row(["longer".into(), "x".into()]);
        let rows = table.render();
        assert_eq!(rows[0], "NAME    STATE");
        assert_eq!(rows[1], "a       \u{1b}[32mok\u{1b}[0m");
        assert_eq!(rows[2], "longer  x");
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn times_are_utc() {
        let at = |seconds| utc(Timestamp::from_parts(seconds, 0));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_658_154), "2026-11-26T01:55:54Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59Z");
    }
}
