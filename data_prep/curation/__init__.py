"""Turns detection data into questions: reads four box formats, words and checks the questions, writes rows and a report."""
