//! Writes the PTX of a truth kernel around its body: load this thread's inputs, fill shared memory, run the body, store.

use super::{Arg, Case, Rule};

/// Name of the only entry of every truth module.
pub const ENTRY: &str = "truth";

/// What stands around a body. Registers for it: `%a<i>` inputs, `%d<i>` outputs (start at 0), `%s` shared base (u32),
/// `%thread`, `%x`, `%y` the two 64-bit values, and scratch `%p<8>`, `%h<8>`, `%r<16>`, `%q<8>`.
pub struct Kernel {
    /// PTX `.version`.
    pub version: &'static str,
    /// PTX `.target`.
    pub target: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Words each thread reads, of which all are `%a`.
    pub inputs: usize,
    /// Words each thread writes.
    pub outputs: usize,
    /// Threads of a block whose outputs are stored.
    pub storing: u32,
    /// Bytes of shared memory, filled from the third parameter before the body.
    pub shared_bytes: usize,
    /// Store all of shared memory after the body too, before the outputs.
    pub dump: bool,
    /// Whether a tensor map is the last parameter; its generic address is in `%q7`.
    pub map: bool,
    /// Instructions.
    pub body: String,
}

impl Kernel {
    /// One warp, with no shared memory.
    pub fn new(
        version: &'static str,
        target: &'static str,
        inputs: usize,
        outputs: usize,
        body: String,
    ) -> Self {
        let (threads, shared_bytes) = (32, 0);
        let (dump, map) = (false, false);
        Kernel { version, target, threads, inputs, outputs, storing: threads, shared_bytes, dump, map, body }
    }

    /// With so many threads.
    pub fn threads(self, threads: u32) -> Self {
        Kernel { threads, storing: threads, ..self }
    }

    /// With shared memory, filled from the third parameter.
    pub fn shared(self, shared_bytes: usize) -> Self {
        Kernel { shared_bytes, ..self }
    }

    /// The module's text.
    pub fn ptx(&self) -> String {
        let mut text = format!(".version {}\n.target {}\n.address_size 64\n", self.version, self.target);
        text += &format!(
            ".visible .entry {ENTRY}(\n.param .u64 p_in,\n.param .u64 p_out,\n.param .u64 p_fill,\n"
        );
        text += ".param .u64 p_x,\n.param .u64 p_y";
        text += if self.map { ",\n.param .align 64 .b8 p_map[128]\n)\n" } else { "\n)\n" };
        text += &format!(".maxntid {}, 1, 1\n{{\n", self.threads);
        text +=
            ".reg .pred %p<8>;\n.reg .pred %loop;\n.reg .b16 %h<8>;\n.reg .b32 %r<16>;\n.reg .b64 %q<8>;\n";
        text += ".reg .b32 %s, %thread, %item, %at;\n.reg .b64 %in, %out, %fill, %x, %y, %step;\n";
        text += &format!(".reg .b32 %a<{}>;\n.reg .b32 %d<{}>;\n", self.inputs + 1, self.outputs + 1);
        if self.shared_bytes > 0 {
            text += &format!(".shared .align 1024 .b8 smem[{}];\n", self.shared_bytes);
            text += ".shared .align 8 .b64 barrier;\n";
        }
        text += "ld.param.u64 %in, [p_in];\nld.param.u64 %out, [p_out];\nld.param.u64 %fill, [p_fill];\n";
        text += "ld.param.u64 %x, [p_x];\nld.param.u64 %y, [p_y];\n";
        text += "cvta.to.global.u64 %in, %in;\ncvta.to.global.u64 %out, %out;\ncvta.to.global.u64 %fill, %fill;\n";
        if self.map {
            text += "mov.b64 %q7, p_map;\ncvta.param.u64 %q7, %q7;\n";
        }
        text += "mov.u32 %thread, %tid.x;\nmov.u32 %item, %ctaid.x;\n";
        text += &format!("mad.lo.u32 %item, %item, {}, %thread;\n", self.threads);
        text += &self.loads();
        text += &self.fill();
        text += &self.body;
        text += "\n";
        if self.dump {
            text += &self.dumped();
        }
        text += &self.stores();
        text + "ret;\n}\n"
    }

    fn loads(&self) -> String {
        let mut text = String::new();
        if self.inputs > 0 {
            text += &format!("mul.wide.u32 %step, %item, {};\nadd.u64 %in, %in, %step;\n", 4 * self.inputs);
        }
        for i in 0..self.inputs {
            text += &format!("ld.global.b32 %a{i}, [%in+{}];\n", 4 * i);
        }
        for i in 0..self.outputs {
            text += &format!("mov.b32 %d{i}, 0;\n");
        }
        text
    }

    /// Copies the third parameter's words to shared memory, and makes them visible to the asynchronous units.
    fn fill(&self) -> String {
        if self.shared_bytes == 0 {
            return String::new();
        }
        let mut text = String::from("mov.u32 %s, smem;\nmul.lo.u32 %at, %thread, 4;\n");
        text += "FILL:\n";
        text += "cvt.u64.u32 %step, %at;\nadd.u64 %step, %fill, %step;\nld.global.b32 %r0, [%step];\n";
        text += "add.u32 %r1, %s, %at;\nst.shared.b32 [%r1], %r0;\n";
        text += &self.next("FILL");
        if self.target.starts_with("sm_90") {
            text += "fence.proxy.async.shared::cta;\n";
        }
        text + "bar.sync 0;\n"
    }

    fn next(&self, label: &str) -> String {
        let mut text = format!("add.u32 %at, %at, {};\n", 4 * self.threads);
        text += &format!("setp.lt.u32 %loop, %at, {};\n@%loop bra {label};\n", self.shared_bytes);
        text
    }

    fn dumped(&self) -> String {
        let mut text = String::from("bar.sync 0;\nmul.lo.u32 %at, %thread, 4;\nDUMP:\n");
        text += "add.u32 %r1, %s, %at;\nld.shared.b32 %r0, [%r1];\n";
        text += "cvt.u64.u32 %step, %at;\nadd.u64 %step, %out, %step;\nst.global.b32 [%step], %r0;\n";
        text += &self.next("DUMP");
        text + &format!("add.u64 %out, %out, {};\n", self.shared_bytes)
    }

    fn stores(&self) -> String {
        let mut text = String::new();
        if self.outputs == 0 {
            return text;
        }
        text += &format!("setp.ge.u32 %loop, %thread, {};\n@%loop bra DONE;\n", self.storing);
        text += &format!("mul.wide.u32 %step, %item, {};\nadd.u64 %out, %out, %step;\n", 4 * self.outputs);
        for i in 0..self.outputs {
            text += &format!("st.global.b32 [%out+{}], %d{i};\n", 4 * i);
        }
        text + "DONE:\n"
    }

    /// Bytes of the output buffer.
    pub fn output_bytes(&self, blocks: u32) -> usize {
        let dumped = if self.dump { self.shared_bytes } else { 0 };
        let threads = if self.storing == self.threads { blocks * self.threads } else { self.storing };
        dumped + threads as usize * self.outputs * 4
    }

    /// A case of one block: the inputs of all threads, one after another, and the content of shared memory.
    pub fn case(&self, name: impl Into<String>, input: &[u32], fill: Vec<u8>, rule: Rule) -> Case {
        let words = (self.threads as usize * self.inputs).max(1);
        let blocks = (input.len() / words).max(1) as u32;
        let buffer = |bytes: Vec<u8>| if bytes.is_empty() { vec![0; 16] } else { bytes };
        Case {
            name: name.into(),
            ptx: self.ptx(),
            threads: self.threads,
            blocks,
            args: vec![
                Arg::Input(buffer(super::inputs::bytes(input))),
                Arg::Output(vec![0; self.output_bytes(blocks)]),
                Arg::Input(buffer(fill)),
                Arg::Value(0),
                Arg::Value(0),
            ],
            rule,
            documented: None,
            refused: false,
        }
    }
}

impl Case {
    /// With the two 64-bit values.
    pub fn values(mut self, x: u64, y: u64) -> Self {
        self.args[3] = Arg::Value(x);
        self.args[4] = Arg::Value(y);
        self
    }

    /// Which must fault: its output says nothing.
    pub fn refused(mut self) -> Self {
        (self.refused, self.documented) = (true, None);
        self
    }

    /// With what the documentation says.
    pub fn documented(mut self, output: Vec<u8>) -> Self {
        self.documented = Some(output);
        self
    }
}

/// `{%d0, %d1, ...}`: registers of a vector operand.
pub fn registers(prefix: &str, range: std::ops::Range<usize>) -> String {
    let names: Vec<String> = range.map(|i| format!("%{prefix}{i}")).collect();
    format!("{{{}}}", names.join(", "))
}
