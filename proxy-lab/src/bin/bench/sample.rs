//! Raw results: one row a measurement, kept in a file of tab-separated values; and what is made of many.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// How many Services there were.
    pub(crate) services: u32,
    pub(crate) figure: String,
    pub(crate) contestant: String,
    pub(crate) round: u32,
    pub(crate) value: f64,
    pub(crate) failed: u64,
}

const HEAD: &str = "services\tfigure\tcontestant\tround\tvalue\tfailed";

/// A run's rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows(pub(crate) Vec<Row>);

/// Quartiles of a set of numbers, and its ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
    pub(crate) worst: f64,
    pub(crate) count: usize,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (numbers.len().checked_sub(1)? as f64);
            let (below, above) = (numbers[place.floor() as usize], numbers[place.ceil() as usize]);
            Some(below + (above - below) * place.fract())
        };
        Some(Self {
            low: at(0.25)?,
            median: at(0.5)?,
            high: at(0.75)?,
            worst: at(1.0)?,
            count: numbers.len(),
        })
    }
}

impl Rows {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let row = |line: &str| {
            let fields: Vec<_> = line.split('\t').collect();
            let &[services, figure, contestant, round, value, failed] = &fields[..] else { return None };
            Some(Row {
                services: services.parse().ok()?,
                figure: figure.to_owned(),
                contestant: contestant.to_owned(),
                round: round.parse().ok()?,
                value: value.parse().ok()?,
                failed: failed.parse().ok()?,
            })
        };
        let lines = text.lines().skip(1);
        let rows = lines.map(|line| row(line).with_context(|| format!("{}: {line:?}", path.display())));
        Ok(Self(rows.collect::<Result<_>>()?))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("{HEAD}\n");
        for Row { services, figure, contestant, round, value, failed } in &self.0 {
            text += &format!("{services}\t{figure}\t{contestant}\t{round}\t{value:.1}\t{failed}\n");
        }
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// In place of what was measured before of the same figures with as many Services.
    pub(crate) fn replace(&mut self, new: Self) {
        let same = |old: &Row, row: &Row| old.services == row.services && old.figure == row.figure;
        self.0.retain(|old| !new.0.iter().any(|row| same(old, row)));
        self.0.extend(new.0);
    }

    fn of<'a>(
        &'a self,
        services: u32,
        figure: &'a str,
        contestant: &'a str,
    ) -> impl Iterator<Item = &'a Row> {
        self.0.iter().filter(move |row| {
            row.services == services && row.figure == figure && row.contestant == contestant
        })
    }

    /// The values of one contestant.
    pub(crate) fn values(&self, services: u32, figure: &str, contestant: &str) -> Option<Spread> {
        Spread::of(self.of(services, figure, contestant).map(|row| row.value).collect())
    }

    /// How many tries failed.
    pub(crate) fn failed(&self, services: u32, figure: &str, contestant: &str) -> u64 {
        self.of(services, figure, contestant).map(|row| row.failed).sum()
    }

    fn pairs(
        &self,
        services: u32,
        figure: &str,
        one: &str,
        to: &str,
        with: fn(f64, f64) -> f64,
    ) -> Option<Spread> {
        let pairs = self.of(services, figure, one).filter_map(|row| {
            let other = self.of(services, figure, to).find(|other| other.round == row.round)?;
            Some(with(row.value, other.value))
        });
        Spread::of(pairs.collect())
    }

    /// One ÷ another of the same round.
    pub(crate) fn ratio(&self, services: u32, figure: &str, one: &str, to: &str) -> Option<Spread> {
        self.pairs(services, figure, one, to, |one, to| one / to)
    }

    /// One − another of the same round.
    pub(crate) fn added(&self, services: u32, figure: &str, one: &str, to: &str) -> Option<Spread> {
        self.pairs(services, figure, one, to, |one, to| one - to)
    }

    /// The numbers of Services that were measured.
    pub(crate) fn sizes(&self) -> Vec<u32> {
        let mut sizes: Vec<_> = self.0.iter().map(|row| row.services).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(figure: &str, contestant: &str, round: u32, value: f64) -> Row {
        Row { services: 1, figure: figure.into(), contestant: contestant.into(), round, value, failed: 1 }
    }

    #[test]
    fn quartiles_lie_between_the_numbers() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { low: 1.75, median: 2.5, high: 3.25, worst: 4.0, count: 4 });
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn a_ratio_is_of_one_round_and_the_median_of_all() {
        let rows = [(0, 10.0, 20.0), (1, 30.0, 40.0), (2, 90.0, 100.0)];
        let rows = rows
            .into_iter()
            .flat_map(|(round, one, two)| [row("x", "vipr", round, one), row("x", "direct", round, two)]);
        let rows = Rows(rows.collect());
        assert_eq!(rows.ratio(1, "x", "vipr", "direct").unwrap().median, 0.75);
        assert_eq!(rows.added(1, "x", "vipr", "direct").unwrap().median, -10.0);
        assert_eq!(rows.ratio(1, "x", "vipr", "nobody"), None);
        assert_eq!(rows.failed(1, "x", "vipr"), 3);
    }

    #[test]
    fn a_figure_is_replaced_as_a_whole_and_survives_the_file() {
        let mut rows =
            Rows(vec![row("x", "vipr", 0, 1.0), row("x", "vipr", 1, 2.0), row("y", "vipr", 0, 3.0)]);
        rows.replace(Rows(vec![row("x", "vipr", 0, 4.0)]));
        let file = tempfile::NamedTempFile::new().unwrap();
        rows.write(file.path()).unwrap();
        assert_eq!(Rows::read(file.path()).unwrap().0, [row("y", "vipr", 0, 3.0), row("x", "vipr", 0, 4.0)]);
    }
}
