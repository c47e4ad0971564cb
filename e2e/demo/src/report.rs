//! Figures beside their goals. Pure.

/// A figure, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    what: String,
    measured: String,
    goal: Option<(String, bool)>,
}

impl Line {
    /// A figure without a goal.
    pub(crate) fn plain(what: &str, measured: String) -> Self {
        Self { what: what.to_owned(), measured, goal: None }
    }

    /// A figure that shall stay below a limit.
    pub(crate) fn below(what: &str, value: f64, limit: f64, unit: Unit) -> Self {
        let goal = format!("< {limit} {}", unit.symbol());
        Self { what: what.to_owned(), measured: unit.show(value), goal: Some((goal, value < limit)) }
    }
}

/// The unit of a figure; it decides the precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    /// Millions of bytes.
    Megabytes,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        let digits = if self == Self::Seconds { 2 } else { 1 };
        format!("{value:.digits$} {}", self.symbol())
    }

    fn symbol(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::Megabytes => "MB",
        }
    }
}

/// Lays the lines out as a table.
pub(crate) fn table(lines: &[Line]) -> String {
    let head = ["FIGURE", "MEASURED", "GOAL", "MET"].map(str::to_owned);
    let rows = lines.iter().map(|line| {
        let (goal, met) = line
            .goal
            .clone()
            .map_or(("-".to_owned(), "-"), |(goal, met)| (goal, if met { "yes" } else { "NO" }));
        [line.what.clone(), line.measured.clone(), goal, met.to_owned()]
    });
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (what, measured, goal) = (width(0), width(1), width(2));
    let show = |row: &[String; 4]| {
        format!("{:what$}  {:>measured$}  {:goal$}  {}\n", row[0], row[1], row[2], row[3])
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
}
