//! What commands print: data on standard output, everything else on standard error.

use crate::failure::Failure;
use clap::ValueEnum;
use comfy_table::presets;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use std::io::{ErrorKind, Write as _};

/// Form of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// Prints text to standard output. A reader that went away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints data in the wanted form.
pub(crate) fn print_data<T: Serialize>(data: &T, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(data).map_err(Failure::failed)? + "\n",
        Format::Yaml => serde_saphyr::to_string(data).map_err(Failure::failed)?,
    };
    print(&text)
}

/// A table as kubectl prints them.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Tells something to the user.
pub(crate) fn tell(message: &str) {
    // Nobody reads it: nothing to do about that.
    drop(writeln!(std::io::stderr(), "{message}"));
}

/// Tells why the command failed.
pub(crate) fn complain(message: &str) {
    tell(&format!("error: {message}"));
}
