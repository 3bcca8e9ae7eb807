//! How results reach people and programs: tables and colours on a terminal, plain text in a pipe, JSON on request.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, TableComponent, presets};

use crate::error::CliError;

/// How a cell is coloured where colours are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it comes.
    #[default]
    Plain,
    /// What is as it should be.
    Good,
    /// What deserves a look.
    Warn,
    /// What is wrong.
    Bad,
}

/// Whether standard output is read by a person.
pub fn is_for_people() -> bool {
    io::stdout().is_terminal()
}

fn has_colors() -> bool {
    is_for_people() && std::env::var_os("NO_COLOR").is_none()
}

/// Writes text to standard output.
///
/// `print!` panics when the reader has gone away; this does not.
pub fn emit(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::Stdout)
}

/// Writes one JSON value on a line of its own.
pub fn emit_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let line = serde_json::to_string(value).map_err(|error| CliError::Stdout(error.into()))?;
    emit(&format!("{line}\n"))
}

/// Rows under a header; the first column is text, the others align right.
pub struct Rows {
    table: Table,
    colored: bool,
}

impl Rows {
    /// A table with these columns.
    pub fn new<S: AsRef<str>>(header: &[S]) -> Self {
        let mut table = Table::new();
        table.load_preset(if is_for_people() { presets::UTF8_HORIZONTAL_ONLY } else { presets::NOTHING });
        for between_rows in [TableComponent::HorizontalLines, TableComponent::MiddleIntersections] {
            table.remove_style(between_rows);
        }
        // A line too long for the terminal reads better than cells broken into columns of letters.
        table.set_content_arrangement(ContentArrangement::Disabled);
        let colored = has_colors();
        if colored {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(|name| Cell::new(name.as_ref())));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Rows { table, colored }
    }

    /// Adds a row.
    pub fn push(&mut self, cells: impl IntoIterator<Item = (String, Tone)>) {
        let colored = self.colored;
        self.table.add_row(cells.into_iter().map(|(text, tone)| {
            let cell = Cell::new(text);
            match tone {
                Tone::Good if colored => cell.fg(Color::Green),
                Tone::Warn if colored => cell.fg(Color::Yellow),
                Tone::Bad if colored => cell.fg(Color::Red),
                _ => cell,
            }
        }));
    }

    /// The table as text, with a line break at the end and no trailing blanks.
    pub fn render(&self) -> String {
        self.table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

/// A cell without colour.
pub fn plain(text: impl Into<String>) -> (String, Tone) {
    (text.into(), Tone::Plain)
}

/// A number of floating-point operations with its unit: `1.47 TFLOP`.
pub fn with_prefix(value: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 5] = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (factor, prefix) =
        PREFIXES.into_iter().find(|(factor, _)| value.abs() >= *factor).unwrap_or((1.0, ""));
    format!("{:.4} {prefix}{unit}", Significant(value / factor))
}

/// A duration in seconds, in the unit that suits it.
pub fn duration(seconds: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")];
    let (factor, unit) = UNITS.into_iter().find(|(factor, _)| seconds >= *factor).unwrap_or((1e-9, "ns"));
    format!("{:.4} {unit}", Significant(seconds / factor))
}

/// Displays with so many significant digits instead of decimals.
pub struct Significant(pub f64);

impl std::fmt::Display for Significant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(4) as i32;
        let magnitude =
            if self.0 == 0.0 || !self.0.is_finite() { 0 } else { self.0.abs().log10().floor() as i32 };
        write!(f, "{:.*}", (digits - 1 - magnitude).clamp(0, 12) as usize, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        assert_eq!(with_prefix(1.468e13, "FLOP"), "14.68 TFLOP");
        assert_eq!(with_prefix(12.0, "B"), "12.00 B");
        assert_eq!(duration(0.0791), "79.10 ms");
        assert_eq!(duration(3.2e-6), "3.200 us");
        assert_eq!(format!("{:.3}", Significant(0.0)), "0.00");
    }
}
