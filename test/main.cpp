// The test runner's main(). Every test/<name>.cpp mirrors llmc/<name>. The last line is "N passed, N failed, N skipped", and is missing after a
// crash. Skipped cases are those that this machine cannot run (test/needs.h), not those that filters exclude.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <cstdio>

static int passed, failed, skipped;

struct Counter : doctest::IReporter {
    const doctest::TestCaseData* current = nullptr;

    explicit Counter(const doctest::ContextOptions&) {}
    void test_case_start(const doctest::TestCaseData& test) override { current = &test; }
    void test_case_end(const doctest::CurrentTestCaseStats& test) override {
        if (test.failure_flags) failed++;
        else if (!current->m_description) passed++;
        else {
            skipped++;
            std::printf("skipped, this machine lacks %s: %s\n", current->m_description, current->m_name);
        }
    }
    void report_query(const doctest::QueryData&) override {}
    void test_run_start() override {}
    void test_run_end(const doctest::TestRunStats&) override {}
    void test_case_reenter(const doctest::TestCaseData&) override {}
    void test_case_exception(const doctest::TestCaseException&) override {}
    void subcase_start(const doctest::SubcaseSignature&) override {}
    void subcase_end() override {}
    void log_assert(const doctest::AssertData&) override {}
    void log_message(const doctest::MessageData&) override {}
    void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("counter", 1, Counter);

int main(int argc, char** argv) {
    doctest::Context context(argc, argv);
    const int code = context.run();
    if (!context.shouldExit()) std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return code;
}
