"""The pure rules of metering: values in, values out.

Nothing here awaits, reads a clock, draws a random number or knows a database.
The live actors, the audit and the tests all call the same functions.
"""
