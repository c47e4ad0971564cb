//! Figures beside their goals. Pure.

/// A figure, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    what: String,
    measured: String,
    goal: Option<(String, bool)>,
    reference: Option<String>,
}

impl Line {
    /// A figure without a goal.
    pub(crate) fn plain(what: &str, measured: String) -> Self {
        Self { what: what.to_owned(), measured, goal: None, reference: None }
    }

    /// A figure that shall stay below a limit.
    pub(crate) fn below(what: &str, value: f64, limit: f64, unit: Unit) -> Self {
        Self::plain(what, unit.show(value)).within(value, limit, unit)
    }

    /// With a limit below which `value` shall stay.
    #[must_use]
    pub(crate) fn within(mut self, value: f64, limit: f64, unit: Unit) -> Self {
        self.goal = Some((format!("< {limit} {}", unit.symbol()).trim_end().to_owned(), value < limit));
        self
    }

    /// With the same figure of the system this one is compared with.
    #[must_use]
    pub(crate) fn reference(mut self, figure: &str) -> Self {
        self.reference = Some(figure.to_owned());
        self
    }
}

/// The unit of a figure; it decides the precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    /// Millions of bytes.
    Megabytes,
    /// 1024 * 1024 bytes.
    Mebibytes,
    /// Thousands of bytes.
    Kilobytes,
    /// Something that is counted, or divided by something of its kind.
    Number,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        let digits = if matches!(self, Self::Seconds | Self::Number) { 2 } else { 1 };
        format!("{value:.digits$} {}", self.symbol()).trim_end().to_owned()
    }

    fn symbol(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::Megabytes => "MB",
            Self::Mebibytes => "MiB",
            Self::Kilobytes => "kB",
            Self::Number => "",
        }
    }
}

/// Lays the lines out as a table.
pub(crate) fn table(lines: &[Line]) -> String {
    let compared = lines.iter().any(|line| line.reference.is_some());
    let head = ["FIGURE", "MEASURED", "GOAL", "MET", "REFERENCE"].map(str::to_owned);
    let rows = lines.iter().map(|line| {
        let (goal, met) = line
            .goal
            .clone()
            .map_or(("-".to_owned(), "-"), |(goal, met)| (goal, if met { "yes" } else { "NO" }));
        let reference = line.reference.clone().unwrap_or_else(|| "-".to_owned());
        [line.what.clone(), line.measured.clone(), goal, met.to_owned(), reference]
    });
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (what, measured, goal) = (width(0), width(1), width(2));
    let show = |row: &[String; 5]| {
        let line = format!("{:what$}  {:>measured$}  {:goal$}  {:3}", row[0], row[1], row[2], row[3]);
        let line = if compared { format!("{line}  {}", row[4]) } else { line };
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_below_its_limit_only() {
        let table = table(&[
            Line::below("quick", 2.994, 3.0, Unit::Seconds),
            Line::below("fat", 30.0, 30.0, Unit::Megabytes),
            Line::plain("neutral", Unit::Milliseconds.show(1.25)),
        ]);
        let expected = "FIGURE   MEASURED  GOAL     MET\n\
                        quick      2.99 s  < 3 s    yes\n\
                        fat       30.0 MB  < 30 MB  NO\n\
                        neutral    1.2 ms  -        -\n";
        assert_eq!(table, expected);
    }

    #[test]
    fn a_reference_is_shown_where_there_is_one() {
        let slow =
            Line::plain("ratio", Unit::Number.show(1.5)).within(1.5, 1.2, Unit::Number).reference("6.7");
        let table = table(&[slow, Line::plain("other", "1".to_owned())]);
        let expected = "FIGURE  MEASURED  GOAL   MET  REFERENCE\n\
                        ratio       1.50  < 1.2  NO   6.7\n\
                        other          1  -      -    -\n";
        assert_eq!(table, expected);
    }
}
