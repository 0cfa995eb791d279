//! The table.

use std::fmt;

use crate::measure::Spread;

/// What a value should be.
#[derive(Clone, Copy)]
pub(crate) enum Aim {
    AtMost(f64),
    AtLeast(f64),
    /// Nothing: it is shown.
    Shown,
}

/// In what a value is.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// As a part of what it is compared with.
    Times,
    /// Plainly.
    Plain(&'static str),
}

/// One row.
pub(crate) struct Row {
    pub(crate) number: &'static str,
    pub(crate) what: String,
    pub(crate) against: String,
    /// `None` when it could not be measured.
    pub(crate) value: Option<Spread>,
    pub(crate) unit: Unit,
    /// The medians behind a ratio.
    pub(crate) medians: String,
    pub(crate) aim: Aim,
}

impl Row {
    /// A ratio.
    pub(crate) fn ratio(
        number: &'static str,
        what: impl Into<String>,
        against: impl Into<String>,
        value: Option<Spread>,
        medians: impl Into<String>,
        aim: Aim,
    ) -> Self {
        Self {
            number,
            what: what.into(),
            against: against.into(),
            value,
            unit: Unit::Times,
            medians: medians.into(),
            aim,
        }
    }

    /// A plain number.
    pub(crate) fn plain(
        number: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        aim: Aim,
    ) -> Self {
        let value = Some(Spread::exactly(value));
        Self {
            number,
            what: what.into(),
            against: String::new(),
            value,
            unit: Unit::Plain(unit),
            medians: String::new(),
            aim,
        }
    }

    fn shown(&self, value: f64) -> String {
        match self.unit {
            Unit::Times => format!("{} x", short(value)),
            Unit::Plain(unit) => format!("{} {unit}", short(value)),
        }
    }

    fn verdict(&self) -> &'static str {
        let met = match (self.value, self.aim) {
            (None, _) => return "not measured",
            (_, Aim::Shown) => return "",
            (Some(value), Aim::AtMost(most)) => value.median <= most,
            (Some(value), Aim::AtLeast(least)) => value.median >= least,
        };
        if met { "yes" } else { "**no**" }
    }
}

/// A number with three digits.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.0995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Nanoseconds in the unit that fits.
pub(crate) fn nanoseconds(value: f64) -> String {
    match value {
        value if value < 1e3 => format!("{} ns", short(value)),
        value if value < 1e6 => format!("{} µs", short(value / 1e3)),
        value if value < 1e9 => format!("{} ms", short(value / 1e6)),
        value => format!("{} s", short(value / 1e9)),
    }
}

/// Two medians behind a ratio.
pub(crate) fn both(subject: f64, reference: f64) -> String {
    format!("{} / {}", nanoseconds(subject), nanoseconds(reference))
}

/// All rows. Displays itself as markdown.
pub(crate) struct Table {
    rows: Vec<Row>,
    short: bool,
}

impl Table {
    pub(crate) fn new(short: bool) -> Self {
        Self { rows: Vec::new(), short }
    }

    pub(crate) fn add(&mut self, row: Row) {
        let value = row.value.map_or_else(String::new, |value| row.shown(value.median));
        eprintln!("  {:>3} {}: {value} {}", row.number, row.what, row.verdict());
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.short {
            writeln!(f, "Measured in short mode: good for seeing that everything runs, not for quoting.\n")?;
        }
        writeln!(f, "| | what | against | measured | quartiles | medians | aim | met |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let (value, quartiles) = match row.value {
                None => (String::new(), String::new()),
                Some(value) if value.low.total_cmp(&value.high).is_eq() => (row.shown(value.median), String::new()),
                Some(value) => (row.shown(value.median), format!("{} – {}", short(value.low), short(value.high))),
            };
            let aim = match row.aim {
                Aim::AtMost(most) => format!("≤ {}", row.shown(most)),
                Aim::AtLeast(least) => format!("≥ {}", row.shown(least)),
                Aim::Shown => String::new(),
            };
            let Row { number, what, against, medians, .. } = row;
            let met = row.verdict();
            writeln!(f, "| {number} | {what} | {against} | {value} | {quartiles} | {medians} | {aim} | {met} |")?;
        }
        Ok(())
    }
}
