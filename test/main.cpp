// The test runner's main(). Every test/<name>.cpp mirrors llmc/<name>. The last line is "N passed, N failed, N skipped", and is missing after a
// crash. Before it stands a line for each failed case, with the first check that failed, for those who see only the end of a log. Skipped cases
// are those that this machine cannot run (test/needs.h), not those that filters exclude.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <algorithm>
#include <cstdio>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

static int passed, failed, skipped;
static std::vector<std::string> failures;   // "failed: CASE: FILE:LINE: CHECK ( ... ), values: ..."

struct Counter : doctest::IReporter {
    const doctest::TestCaseData* current = nullptr;
    std::string first;   // the first failure of the current case: where and what
    std::mutex guard;    // checks may run in several threads

    explicit Counter(const doctest::ContextOptions&) {}
    void test_case_start(const doctest::TestCaseData& test) override {
        current = &test;
        first.clear();
    }
    void remember(const char* file, int line, const std::string& what) {
        const std::lock_guard lock(guard);
        if (first.empty()) first = std::string(file) + ":" + std::to_string(line) + ": " + what;
    }
    void test_case_end(const doctest::CurrentTestCaseStats& test) override {
        if (test.failure_flags) {
            failed++;
            std::string line = std::string("failed: ") + current->m_name + (first.empty() ? "" : ": " + first.substr(0, 600));
            std::replace(line.begin(), line.end(), '\n', ' ');
            failures.push_back(line);
        } else if (!current->m_description) passed++;
        else {
            skipped++;
            std::printf("skipped, this machine lacks %s: %s\n", current->m_description, current->m_name);
        }
    }
    void report_query(const doctest::QueryData&) override {}
    void test_run_start() override {}
    void test_run_end(const doctest::TestRunStats&) override {}
    void test_case_reenter(const doctest::TestCaseData&) override {}
    void test_case_exception(const doctest::TestCaseException& thrown) override {
        remember(current->m_file.c_str(), static_cast<int>(current->m_line), std::string("threw ") + thrown.error_string.c_str());
    }
    void subcase_start(const doctest::SubcaseSignature&) override {}
    void subcase_end() override {}
    void log_assert(const doctest::AssertData& check) override {
        if (!check.m_failed) return;
        std::string what = std::string(doctest::assertString(check.m_at)) + "( " + check.m_expr + " )";
        if (check.m_threw) what += std::string(", threw ") + check.m_exception.c_str();
        else if (check.m_decomp.size()) what += std::string(", values: ") + check.m_decomp.c_str();
        for (int at = 0; at < get_num_active_contexts(); at++) {
            std::ostringstream info;
            get_active_contexts()[at]->stringify(&info);
            what += "; " + info.str();
        }
        remember(check.m_file, check.m_line, what);
    }
    void log_message(const doctest::MessageData& message) override {
        if (!(message.m_severity & doctest::assertType::is_warn)) remember(message.m_file, message.m_line, message.m_string.c_str());
    }
    void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("counter", 1, Counter);

int main(int argc, char** argv) {
    doctest::Context context(argc, argv);
    const int code = context.run();
    for (const std::string& line : failures) std::printf("%s\n", line.c_str());
    if (!context.shouldExit()) std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return code;
}
