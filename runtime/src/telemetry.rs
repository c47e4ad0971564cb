//! Logs: text on a terminal, JSON otherwise, with a level per module that can be changed while running.

use std::io::IsTerminal;
use std::sync::Arc;
use thiserror::Error;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The level the processes start with: our own transitions, and only warnings of libraries.
pub const DEFAULT_FILTER: &str = "warn,liquid=info";

/// Why the log filter could not be set.
#[derive(Debug, Error)]
pub enum FilterError {
    /// The text is no filter.
    #[error("log filter {text:?} is not understood ({source}); an example is \"info,liquid_link=debug\"")]
    Syntax {
        /// What was given.
        text: String,
        /// What the parser says.
        source: ParseError,
    },
    /// Logging was set up by somebody else.
    #[error("the log filter cannot be changed: {0}")]
    Gone(reload::Error),
}

/// The running log filter.
#[derive(Clone)]
pub struct LogFilter {
    handle: Arc<reload::Handle<EnvFilter, Registry>>,
}

impl LogFilter {
    /// The filter in force.
    pub fn current(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// If `text` is no filter; the one in force stays.
    pub fn set(&self, text: &str) -> Result<(), FilterError> {
        self.handle.reload(parse(text)?).map_err(FilterError::Gone)
    }
}

/// Starts logging to standard error; `filter` is in the syntax of `RUST_LOG`.
///
/// # Errors
/// If `filter` cannot be parsed.
pub fn init(filter: &str) -> Result<LogFilter, FilterError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    if std::io::stderr().is_terminal() {
        registry.with(fmt::layer().with_writer(std::io::stderr)).init();
    } else {
        registry
            .with(
                fmt::layer().json().flatten_event(true).with_current_span(false).with_writer(std::io::stderr),
            )
            .init();
    }
    Ok(LogFilter { handle: Arc::new(handle) })
}

/// A filter for `liquid` covers every crate of ours, whose names all start with `liquid_`; the crate
/// matches prefixes of targets, so the word alone is enough.
fn parse(text: &str) -> Result<EnvFilter, FilterError> {
    EnvFilter::builder().parse(text).map_err(|source| FilterError::Syntax { text: text.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_with_an_example() {
        let error = parse("liquid=loudest").unwrap_err();
        assert!(error.to_string().contains("liquid_link=debug"), "{error}");
    }

    #[test]
    fn the_default_filter_parses() {
        assert_eq!(parse(DEFAULT_FILTER).unwrap().to_string(), "liquid=info,warn");
    }
}
