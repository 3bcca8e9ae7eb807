//! Where a result goes, and where operands come from, in the text of a kernel: what a reason says of a place there holds for all
//! kernels that have it, wherever in their text.

/// The lines of a kernel's text.
pub struct Flow<'a> {
    lines: Vec<&'a str>,
}

/// So many steps are followed.
const STEPS: usize = 12;

impl<'a> Flow<'a> {
    pub fn of(text: &'a str) -> Self {
        Flow { lines: text.lines().map(str::trim).collect() }
    }

    /// Whether every way that the result of a line takes goes through instructions with the first of these parts, to the end in one
    /// with another of them.
    pub fn goes_into(&self, line: &str, parts: &[&str]) -> bool {
        self.leads(line, parts, STEPS)
    }

    fn leads(&self, line: &str, parts: &[&str], steps: usize) -> bool {
        let Some((through, ends)) = parts.split_first() else { return true };
        let mut readers = results(line).flat_map(|register| self.readers(register)).peekable();
        steps > 0
            && readers.peek().is_some()
            && readers.all(|reader| {
                let is_end = ends.iter().any(|part| reader.contains(part));
                is_end || reader.contains(through) && self.leads(reader, parts, steps - 1)
            })
    }

    /// Whether every operand of a line, but for literals, comes from instructions with one of these parts.
    pub fn comes_from(&self, line: &str, parts: &[&str]) -> bool {
        let makers: Vec<&str> = operands(line).flat_map(|register| self.makers(register)).collect();
        let is_one = |maker: &&str| parts.iter().any(|part| maker.contains(part));
        parts.is_empty() || !makers.is_empty() && makers.iter().all(is_one)
    }

    fn readers<'s>(&'s self, register: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.lines.iter().copied().filter(move |line| operands(line).any(|other| other == register))
    }

    fn makers<'s>(&'s self, register: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.lines.iter().copied().filter(move |line| results(line).any(|other| other == register))
    }

    /// Whether the line stands on a way through instructions with these parts in turn: what reads its result, and that of each that
    /// follows, has the next one alone; what it is made of, and each before, at least once the one before.
    pub fn is_on(&self, line: &str, way: &[&str]) -> bool {
        let is_here = |at: &usize| {
            line.contains(way[*at])
                && self.follows(line, &way[at + 1..])
                && self.leads_back(line, &way[..*at])
        };
        way.is_empty() || (0..way.len()).any(|at| is_here(&at))
    }

    fn follows(&self, line: &str, way: &[&str]) -> bool {
        let Some((next, rest)) = way.split_first() else { return true };
        let mut readers = results(line).flat_map(|register| self.readers(register)).peekable();
        readers.peek().is_some() && readers.all(|reader| reader.contains(next) && self.follows(reader, rest))
    }

    fn leads_back(&self, line: &str, way: &[&str]) -> bool {
        let Some((before, rest)) = way.split_last() else { return true };
        let mut makers = operands(line).flat_map(|register| self.makers(register));
        makers.any(|maker| maker.contains(before) && self.leads_back(maker, rest))
    }
}

fn registers(text: &str) -> impl Iterator<Item = &str> {
    let pieces = text.split(|c: char| !(c.is_ascii_alphanumeric() || "%_.".contains(c)));
    pieces.filter(|piece| piece.starts_with('%') && !piece.contains('.'))
}

/// Of a line the guard, what it gives, and the rest.
fn parts(line: &str) -> [&str; 3] {
    let (guard, rest) = match line.strip_prefix('@') {
        Some(guarded) => guarded.split_once(' ').unwrap_or((guarded, "")),
        None => ("", line),
    };
    let gives_nothing =
        ["st.", "bra", "ret", "bar.", "{", ".", "//"].iter().any(|start| rest.starts_with(start));
    let Some((_, arguments)) = rest.split_once(char::is_whitespace).filter(|_| !gives_nothing) else {
        return [guard, "", rest];
    };
    let arguments = arguments.trim_start();
    let end = if arguments.starts_with('{') { arguments.find('}') } else { arguments.find(',') };
    let (given, read) = arguments.split_at(end.unwrap_or(arguments.len()));
    [guard, given, read]
}

fn results(line: &str) -> impl Iterator<Item = &str> {
    registers(parts(line)[1])
}

/// What a line reads, the guard too.
fn operands(line: &str) -> impl Iterator<Item = &str> {
    let [guard, _, read] = parts(line);
    registers(guard.trim_start_matches('!')).chain(registers(read))
}

#[cfg(test)]
mod tests {
    use super::Flow;

    const TEXT: &str = "
        ld.param.u32 %r1, [k_param_0];
        setp.lt.s32 %p1, %r1, 4;
        setp.lt.u32 %p2, %r1, 9;
        and.pred %p3, %p1, %p2;
        selp.b32 %r2, %r1, 0, %p3;
        add.s32 %r3, %r2, -1;
        @%p2 st.global.u32 [%rd1], %r3;
        st.global.u32 [%rd1], %r2;";

    #[test]
    fn a_result_is_followed_to_all_that_reads_it() {
        let flow = Flow::of(TEXT);
        assert!(flow.goes_into("setp.lt.s32 %p1, %r1, 4;", &["and.pred", "selp.b32"]));
        // It guards a store, too.
        assert!(!flow.goes_into("setp.lt.u32 %p2, %r1, 9;", &["and.pred", "selp.b32"]));
        // Nothing reads what is not there.
        assert!(!flow.goes_into("mov.u32 %r9, 0;", &["and.pred", "selp.b32"]));
        assert!(!flow.goes_into("selp.b32 %r2, %r1, 0, %p3;", &["and.pred", "add.s32"]));
        assert!(flow.goes_into("selp.b32 %r2, %r1, 0, %p3;", &["add.s32", "st.global"]));
    }

    #[test]
    fn operands_are_followed_to_what_gives_them() {
        let flow = Flow::of(TEXT);
        let line = "and.pred %p3, %p1, %p2;";
        assert!(flow.comes_from(line, &["setp.lt.s32", "setp.lt.u32"]));
        assert!(!flow.comes_from(line, &["setp.lt.s32"]));
    }

    #[test]
    fn a_way_is_the_only_one_forwards_and_one_of_those_back() {
        let flow = Flow::of(TEXT);
        let line = "and.pred %p3, %p1, %p2;";
        assert!(flow.is_on(line, &["setp.lt.s32", "and.pred", "selp.b32"]));
        assert!(!flow.is_on(line, &["setp.gt.s32", "and.pred", "selp.b32"]));
        assert!(!flow.is_on(line, &["setp.lt.s32", "and.pred", "selp.b32", "add.s32"]));
    }
}
