//! Loads and stores of every shape and length: each register of each lane against the tables.

use natten_emulator::Options;

use crate::oracle::Movement;
use crate::text::{kernel, registers, run};

/// A shape repeated: what the table of one repetition says, one behind the other along the columns.
struct Repeated<'m> {
    movement: &'m Movement,
    repeats: usize,
    /// Columns to the second part, of a shape in two.
    split: u64,
}

impl Repeated<'_> {
    fn registers(&self) -> usize {
        self.movement.registers() as usize * self.repeats
    }

    fn is_in_two(&self) -> bool {
        self.movement.shape == "16x32bx2"
    }

    fn cell(&self, thread: u64, register: usize) -> (u64, u64) {
        let once = self.movement.registers();
        let (repeat, register) = (register as u64 / once, register as u64 % once);
        let (lane, column) = self.movement.cell(thread, register);
        if self.is_in_two() {
            return (lane, column * self.split + repeat);
        }
        (lane, column + repeat * self.movement.columns())
    }

    /// Columns up to the last one.
    fn columns(&self) -> u64 {
        let last = (0..32).flat_map(|t| (0..self.registers()).map(move |r| (t, r)));
        1 + last.map(|(t, r)| self.cell(t, r).1).max().expect("some register")
    }

    fn opcode(&self, operation: &str, modifier: &str) -> String {
        format!("tcgen05.{operation}.sync.aligned.{}.x{}{modifier}.b32", self.movement.shape, self.repeats)
    }

    fn load(&self, modifier: &str, at: &str) -> String {
        let split = if self.is_in_two() { format!(", {}", self.split) } else { String::new() };
        let list = registers(10, self.registers());
        format!("{} {list}, [{at}]{split};\n", self.opcode("ld", modifier))
    }

    fn store(&self, modifier: &str, at: &str) -> String {
        let split = if self.is_in_two() { format!("{}, ", self.split) } else { String::new() };
        let list = registers(10, self.registers());
        format!("{} [{at}], {split}{list};\n", self.opcode("st", modifier))
    }
}

/// Puts 1024 times the thread plus the column into its lane.
fn fill(columns: u64) -> String {
    let mut text = "shl.b32 %r1, %thread, 10;\n".to_owned();
    for column in 0..columns {
        text += &format!("add.u32 %r2, %r1, {column};\n");
        text += &format!("tcgen05.st.sync.aligned.32x32b.x1.b32 [%mine+{column}], {{%r2}};\n");
    }
    text + "tcgen05.wait::st.sync.aligned;\n"
}

/// Writes `count` registers of each thread to its place.
fn write_out(count: usize) -> String {
    let mut text = format!("mul.lo.u32 %r2, %thread, {};\nmul.wide.u32 %rd1, %r2, 4;\n", count);
    text += "add.s64 %rd1, %out, %rd1;\n";
    for register in 0..count {
        text += &format!("st.global.u32 [%rd1+{}], %r{};\n", 4 * register, 10 + register);
    }
    text
}

/// Every shape at every number of repetitions, and, of shapes of 16 lanes, at both halves of a warp's lanes.
fn each(mut f: impl FnMut(&Repeated<'_>, u64)) {
    for movement in Movement::all().iter().filter(|movement| movement.repeats == 1) {
        let most = 128 / movement.registers() as usize;
        for repeats in (0..8).map(|power| 1 << power).take_while(|&repeats| repeats <= most) {
            for half in 0..32 / movement.lanes {
                f(&Repeated { movement, repeats, split: repeats as u64 + 3 }, 16 * half);
            }
        }
    }
}

#[test]
fn two_repetitions_are_one_behind_the_other() {
    let all = Movement::all();
    for twice in all.iter().filter(|movement| movement.repeats == 2) {
        let once = all.iter().find(|m| m.shape == twice.shape && m.repeats == 1).expect("both lines");
        let repeated = Repeated { movement: once, repeats: 2, split: 2 };
        for thread in 0..32 {
            for register in 0..repeated.registers() {
                assert_eq!(
                    repeated.cell(thread, register),
                    twice.cell(thread, register as u64),
                    "{}",
                    twice.shape
                );
            }
        }
    }
}

#[test]
fn loads_of_every_shape() {
    each(|shape, lane| {
        let (count, at) = (shape.registers(), format!("%mine+{}", (lane << 16) + 1));
        let body = fill(shape.columns() + 1)
            + &shape.load("", &at)
            + "tcgen05.wait::ld.sync.aligned;\n"
            + &write_out(count);
        let name = shape.opcode("ld", "");
        let out = run(&kernel(&body), 128, 128 * count, Options::default())
            .unwrap_or_else(|f| panic!("{name}: {f}"));
        for thread in 0..128 {
            for register in 0..count {
                let (row, column) = shape.cell(thread % 32, register);
                let expected = 1024 * (thread / 32 * 32 + lane + row) + column + 1;
                let got = out[thread as usize * count + register];
                assert_eq!(u64::from(got), expected, "{name}, thread {thread}, register {register}");
            }
        }
    });
}

#[test]
fn stores_of_every_shape() {
    const UNTOUCHED: u32 = 0x7777_7777;
    each(|shape, lane| {
        let (count, columns) = (shape.registers(), shape.columns() as usize);
        let mut body = format!("mov.u32 %r2, {UNTOUCHED};\n");
        for column in 0..columns {
            body += &format!("tcgen05.st.sync.aligned.32x32b.x1.b32 [%mine+{column}], {{%r2}};\n");
        }
        body += "tcgen05.wait::st.sync.aligned;\nshl.b32 %r1, %thread, 8;\n";
        (0..count).for_each(|r| body += &format!("add.u32 %r{}, %r1, {r};\n", 10 + r));
        body += &shape.store("", &format!("%mine+{}", lane << 16));
        body += "tcgen05.wait::st.sync.aligned;\n";
        body += &format!(
            "mul.lo.u32 %r2, %thread, {columns};\nmul.wide.u32 %rd1, %r2, 4;\nadd.s64 %rd1, %out, %rd1;\n"
        );
        for column in 0..columns {
            body += &format!("tcgen05.ld.sync.aligned.32x32b.x1.b32 {{%r3}}, [%mine+{column}];\n");
            body += &format!("tcgen05.wait::ld.sync.aligned;\nst.global.u32 [%rd1+{}], %r3;\n", 4 * column);
        }
        let name = shape.opcode("st", "");
        let out = run(&kernel(&body), 128, 128 * columns, Options::default())
            .unwrap_or_else(|f| panic!("{name}: {f}"));
        let mut expected = vec![UNTOUCHED; 128 * columns];
        for thread in 0..128 {
            for register in 0..count {
                let (row, column) = shape.cell(thread % 32, register);
                let cell = (thread / 32 * 32 + lane + row) as usize * columns + column as usize;
                assert_eq!(expected[cell], UNTOUCHED, "{name}: two registers of one cell");
                expected[cell] = 256 * thread as u32 + register as u32;
            }
        }
        assert!(out == expected, "{name}");
    });
}

#[test]
fn halves_of_two_columns_in_one_register() {
    each(|shape, lane| {
        if shape.is_in_two() || shape.columns() > 128 {
            return;
        }
        let (count, at) = (shape.registers(), format!("%mine+{}", lane << 16));
        // Low halves tell lane and column apart; what lies above them must not show.
        let mut body =
            "shl.b32 %r1, %thread, 8;\nand.b32 %r1, %r1, 65535;\nadd.u32 %r1, %r1, 0x55550000;\n".to_owned();
        for column in 0..2 * shape.columns() {
            body += &format!("add.u32 %r2, %r1, {column};\n");
            body += &format!("tcgen05.st.sync.aligned.32x32b.x1.b32 [%mine+{column}], {{%r2}};\n");
        }
        body += "tcgen05.wait::st.sync.aligned;\n";
        body += &shape.load(".pack::16b", &at);
        body += "tcgen05.wait::ld.sync.aligned;\n";
        body += &write_out(count);
        let name = shape.opcode("ld", ".pack::16b");
        let out = run(&kernel(&body), 128, 128 * count, Options::default())
            .unwrap_or_else(|f| panic!("{name}: {f}"));
        for thread in 0..128 {
            for register in 0..count {
                let (row, column) = shape.cell(thread % 32, register);
                let low = |column: u64| 256 * (thread / 32 * 32 + lane + row) % 65536 + column;
                let expected = low(2 * column) + 65536 * low(2 * column + 1);
                let got = out[thread as usize * count + register];
                assert_eq!(u64::from(got), expected, "{name}, thread {thread}, register {register}");
            }
        }
    });
}

#[test]
fn a_register_into_the_halves_of_two_columns() {
    each(|shape, lane| {
        if shape.is_in_two() || shape.columns() > 128 {
            return;
        }
        let count = shape.registers();
        let mut body = "shl.b32 %r1, %thread, 8;\n".to_owned();
        (0..count).for_each(|r| {
            body += &format!("mad.lo.u32 %r{}, %r1, 65537, {};\n", 10 + r, r + 65536 * (r + 100))
        });
        body += &shape.store(".unpack::16b", &format!("%mine+{}", lane << 16));
        body += "tcgen05.wait::st.sync.aligned;\n";
        // Read back as words, of which the low halves count, by the table of words.
        let words = Repeated { repeats: 2 * shape.repeats, ..*shape };
        let most = 128 / shape.movement.registers() as usize;
        if words.repeats > most {
            return;
        }
        body += &words.load("", &format!("%mine+{}", lane << 16));
        body += "tcgen05.wait::ld.sync.aligned;\n";
        body += &write_out(words.registers());
        let name = shape.opcode("st", ".unpack::16b");
        let out = run(&kernel(&body), 128, 128 * words.registers(), Options::default());
        let out = out.unwrap_or_else(|fault| panic!("{name}: {fault}"));
        let mut cells = std::collections::HashMap::new();
        for thread in 0..128u64 {
            for register in 0..words.registers() {
                let (row, column) = words.cell(thread % 32, register);
                let low = out[thread as usize * words.registers() + register] % 65536;
                cells.insert((thread / 32 * 32 + row, column), low);
            }
        }
        for thread in 0..128u64 {
            for register in 0..count {
                let (row, column) = shape.cell(thread % 32, register);
                let stored = (256 * thread as u32 % 65536, register as u32);
                let at = |column: u64| cells[&(thread / 32 * 32 + row, column)];
                assert_eq!(
                    at(2 * column),
                    stored.0 + stored.1,
                    "{name}, thread {thread}, register {register}"
                );
                assert_eq!(
                    at(2 * column + 1),
                    stored.0 + stored.1 + 100,
                    "{name}, thread {thread}, register {register}"
                );
            }
        }
    });
}
