//! What a restored operator does: its caches are made anew from the tables, at any moment between two calls.

use tidemill_core::plan::{AggregateFunction, Windows};

use super::super::tests::{Dice, Model, Row, Setup, advance, process, process_text, sorted};
use super::*;

impl SessionWindows {
    /// What is left of it after a restore.
    fn restart(self) -> Self {
        let Core { common, aggregates, state, latest, older_table, gap_ms, .. } = self.core;
        let mut core = Core::new(common, aggregates, state, (latest, older_table), gap_ms).unwrap();
        core.recall_latest().unwrap();
        core.recall_older().unwrap();
        Self { core, batch: None, transaction: Transaction::default() }
    }
}

#[test]
fn restarts_change_nothing() {
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let mut setup = Setup::new(Windows::Session { gap_ms: 1 + dice.roll(300) as u64 });
        setup.lateness_ms = dice.roll(3) * dice.roll(400);
        setup.text_keys = seed % 2 == 0;
        setup.batch_rows = [1, 3, 4_096][seed as usize % 3];
        setup.aggregates = vec![AggregateFunction::Count, AggregateFunction::Min(1)];
        let mut operator = setup.sessions();
        let mut model = Model::new(&setup);
        let (keys, disorder) = (1 + dice.roll(6) as u64, 1 + dice.roll(1_500) as u64);
        let (mut now, mut watermark) = (dice.roll(1_000) - 500, i64::MIN);
        for _ in 0..60 {
            let rows: Vec<Row> = (0..1 + dice.roll(12))
                .map(|_| {
                    now += dice.roll(40);
                    Row { k: dice.roll(keys), v: Some(dice.roll(100)), f: None, t: now - dice.roll(disorder) }
                })
                .collect();
            let (results, late) = model.process(&rows);
            let out = if setup.text_keys { process_text } else { process }(&mut operator, &rows);
            assert_eq!(sorted(out.results), sorted(results), "seed {seed}");
            assert_eq!(out.late, late, "seed {seed}");
            if dice.roll(4) == 0 {
                operator = operator.restart();
            }
            if dice.roll(3) == 0 {
                watermark = watermark.max(now - dice.roll(disorder));
                let out = advance(&mut operator, watermark).results;
                assert!(out.windows(2).all(|w| w[0][1] <= w[1][1]), "not in order of ends, seed {seed}");
                assert_eq!(sorted(out), sorted(model.advance(watermark)), "seed {seed}");
                if dice.roll(2) == 0 {
                    operator = operator.restart();
                }
            }
        }
        let out = advance(&mut operator, i64::MAX).results;
        assert_eq!(sorted(out), sorted(model.advance(i64::MAX - 1_000)), "seed {seed}, at the end");
        assert_eq!(operator.core.state.entries(), 0, "something is left at the end, seed {seed}");
        assert!(operator.core.older.is_empty());
        assert!(operator.core.expiry.take(operator.core.state.codec(), i64::MAX, 9).unwrap().is_none());
    }
}
