//! A figure as it is printed, and how many measurements become one.
//!
//! What always holds: a figure stands for at least one measurement; its value is the median, its range is shown.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::conditions::Seen;

/// One figure of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The row of the published targets.
    pub target: u32,
    /// Its name there, or a name of its own for what only explains another.
    pub what: String,
    /// Median of all runs, where its name does not say otherwise.
    pub value: f64,
    /// Unit of the value.
    pub unit: String,
    /// What is to be reached: `<= 10`, `stated`.
    pub goal: String,
    /// The reference's name and version, or that it was not run.
    pub reference: String,
    /// The reference's median, from the same run.
    pub reference_value: Option<f64>,
    /// Value by the reference's value.
    pub ratio: Option<f64>,
    /// How many times it was measured.
    pub runs: u32,
    /// The lowest of the runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// The highest of the runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Under which conditions, where they differ from the target's or need words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Share of processor time that the hypervisor below this machine took away meanwhile, percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steal_percent: Option<f64>,
    /// Load average over one minute before the row began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_before: Option<f64>,
}

impl Figure {
    /// The median of `values`, without a reference.
    pub fn of(
        target: u32,
        what: &str,
        values: &[f64],
        unit: &str,
        goal: &str,
    ) -> anyhow::Result<Self> {
        Self::with_value(target, what, median(values)?, values, unit, goal)
    }

    /// The 99th percentile of `values`, without a reference.
    pub fn p99_of(
        target: u32,
        what: &str,
        values: &[f64],
        unit: &str,
        goal: &str,
    ) -> anyhow::Result<Self> {
        Self::with_value(target, what, p99(values)?, values, unit, goal)
    }

    fn with_value(
        target: u32,
        what: &str,
        value: f64,
        values: &[f64],
        unit: &str,
        goal: &str,
    ) -> anyhow::Result<Self> {
        let least = values.iter().copied().reduce(f64::min);
        let most = values.iter().copied().reduce(f64::max);
        Ok(Self {
            target,
            what: what.into(),
            value,
            unit: unit.into(),
            goal: goal.into(),
            reference: "reference not run".into(),
            reference_value: None,
            ratio: None,
            runs: u32::try_from(values.len())?,
            low: least.map(rounded),
            high: most.map(rounded),
            note: None,
            steal_percent: None,
            load_before: None,
        })
    }

    /// With the conditions in words.
    #[must_use]
    pub fn noted(self, note: &str) -> Self {
        Self {
            note: Some(note.into()),
            ..self
        }
    }

    /// Naming a reference that was not measured, and why.
    #[must_use]
    pub fn without(self, reference: &str, why: &str) -> Self {
        Self {
            reference: format!("{reference}: not measured ({why})"),
            ..self
        }
    }

    /// Beside a reference that was measured in the same run.
    pub fn beside(self, reference: &str, values: &[f64]) -> anyhow::Result<Self> {
        self.beside_value(reference, median(values)?)
    }

    /// Beside what became of a reference's values as this figure's became of its own.
    pub fn beside_value(self, reference: &str, value: f64) -> anyhow::Result<Self> {
        ensure!(value > 0.0, "A reference takes some time");
        Ok(Self {
            reference: reference.into(),
            reference_value: Some(value),
            ratio: Some(rounded(self.value / value)),
            ..self
        })
    }

    /// With what the machine was like meanwhile.
    #[must_use]
    pub fn under(self, seen: Seen) -> Self {
        Self {
            steal_percent: Some(rounded(seen.steal_percent)),
            load_before: Some(seen.load_before),
            ..self
        }
    }
}

/// The median; the mean of the middle two where there is no middle one.
pub fn median(values: &[f64]) -> anyhow::Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted
        .get(sorted.len() / 2)
        .context("Nothing was measured")?;
    let lower = sorted.get(sorted.len().saturating_sub(1) / 2);
    Ok(rounded((upper + lower.unwrap_or(upper)) / 2.0))
}

/// The 99th percentile: the least of the values that no more than 1 % are above.
pub fn p99(values: &[f64]) -> anyhow::Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (values.len() * 99).div_ceil(100).saturating_sub(1);
    let value = sorted.get(rank).context("Nothing was measured")?;
    Ok(rounded(*value))
}

/// To three digits after the point: more would only seem exact.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).unwrap(), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).unwrap(), 2.5);
        assert_eq!(median(&[7.0]).unwrap(), 7.0);
        assert!(median(&[]).is_err());
    }

    #[test]
    fn no_more_than_one_of_a_hundred_is_above_the_99th_percentile() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(p99(&values).unwrap(), 198.0);
        assert_eq!(p99(&[7.0]).unwrap(), 7.0);
        assert!(p99(&[]).is_err());
    }

    #[test]
    fn a_figure_needs_a_measurement_and_shows_its_range() {
        assert!(Figure::of(1, "start_ms", &[], "ms", "<= 10").is_err());
        let figure = Figure::of(1, "start_ms", &[8.0, 9.0, 20.0], "ms", "<= 10").unwrap();
        assert_eq!((figure.value, figure.runs), (9.0, 3));
        assert_eq!((figure.low, figure.high), (Some(8.0), Some(20.0)));
        assert!(figure.reference.contains("not run") && figure.ratio.is_none());
        let without = figure.clone().without("other", "it is not here");
        assert_eq!(without.reference, "other: not measured (it is not here)");
        let beside = figure.beside("other 1", &[18.0]).unwrap();
        assert_eq!(beside.ratio, Some(0.5));
    }
}
